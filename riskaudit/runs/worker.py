"""A worker's process: ``python -m riskaudit.runs.worker DIR [SHARD]``.

It ends with code 0 when all is done, with 2 and one sentence where nothing can be done, and with its parent: that holds
the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

from riskaudit.errors import RiskauditError

EXIT_REFUSED = 2
# Seconds to give a shard back in good order.
PATIENCE = 5.0


def main(arguments: list[str]) -> int:
    """Work, and return the exit code."""
    signal.signal(signal.SIGTERM, _leave)
    # The parent's business, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from riskaudit.runs.folder import RunFolder
    from riskaudit.runs.work import Worker

    folder, *only = arguments
    try:
        Worker(RunFolder.open(folder)).work(int(only[0]) if only else None)
    except RiskauditError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
