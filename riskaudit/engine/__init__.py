"""Where trials run, and the journal of those that are finished."""

from riskaudit.engine.base import (
    Describable,
    Description,
    Engine,
    FineProgress,
    Interrupted,
    Progress,
    Trial,
    progress_after,
    tell_share,
)
from riskaudit.engine.journal import Journal, fingerprint
from riskaudit.engine.processes import ProcessEngine
from riskaudit.engine.serial import SerialEngine
from riskaudit.errors import SettingsError

__all__ = [
    "Describable",
    "Description",
    "Engine",
    "FineProgress",
    "Interrupted",
    "Journal",
    "ProcessEngine",
    "Progress",
    "SerialEngine",
    "Trial",
    "fingerprint",
    "make_engine",
    "progress_after",
    "tell_share",
]


def make_engine(workers: int) -> Engine:
    """The engine for so many workers: this process alone for one.

    Raises:
        SettingsError: fewer than one.
    """
    if workers < 1:
        raise SettingsError(f"expected `workers` of at least 1, found {workers}")
    return SerialEngine() if workers == 1 else ProcessEngine(workers)
