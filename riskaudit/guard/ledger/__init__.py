"""What has left about each sample, over all rounds: an account per sample in a file that notices when it is changed."""

from riskaudit.guard.ledger.accounts import Account
from riskaudit.guard.ledger.ledger import Ledger

__all__ = ["Account", "Ledger"]
