"""What every study of the command line is given besides model, samples and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudyRun:
    """How a study is run.

    Attributes:
        attacks: check its predictions by attacks too.
        attack_steps: of every attack; None for each one's own.
        log: file in which finished trials are kept; None for memory only.
        resume: take over what is in it.
        progress: called as ``progress(done, total)``, in trials.
        command: the command line that reproduces the result.
        show_samples: put private images into the result.
    """

    attacks: bool = False
    attack_steps: int | None = None
    log: Path | None = None
    resume: bool = False
    progress: Callable[[int, int], None] | None = None
    command: str | None = None
    show_samples: bool = False
