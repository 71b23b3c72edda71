"""The command line: the only place that prints, reads configuration files, or exits.

Exit codes: 0 audited, within policy or no policy given; 1 a policy limit was exceeded; 2 could not
audit; 130 interrupted.
"""

import os

# PyTorch's threads are read this as they are made: those that wait sleep. Spinning, as they do else, two of them take
# ten times as long where another program has one of two cores (benchmarks/RESULTS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from riskaudit.cli.app import main

__all__ = ["main"]
