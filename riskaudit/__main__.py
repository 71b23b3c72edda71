"""``python -m riskaudit``."""

from riskaudit.cli import main

main()
