"""The command line: the only place that prints, reads configuration files, or exits.

Exit codes: 0 audited, within policy or no policy given; 1 a policy limit was exceeded; 2 could not
audit; 130 interrupted.
"""

from riskaudit.cli.app import main

__all__ = ["main"]
