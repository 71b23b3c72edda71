"""A client and trials of a few numbers, for engines alone; found by worker processes by this module's name."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from riskaudit.engine import Trial, tell_share
from riskaudit.errors import SettingsError


class Unreadable:
    """Can be pickled, and fails where it is unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ImportError("no such class here")


@dataclass(frozen=True)
class AdderDescription:
    offset: int
    more: Any = None

    def build(self) -> Adder:
        return Adder(self.offset, self)

    def devices(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class Adder:
    """Adds its offset to numbers."""

    offset: int
    description: AdderDescription = field(repr=False)


def adder(offset: int = 100, more: Any = None) -> Adder:
    return AdderDescription(offset, more).build()


@dataclass(frozen=True)
class Add(Trial[Adder]):
    """A number plus the offset.

    ``fate``: "die" ends the process that runs the trial, "die once" where ``marker`` doesn't exist yet, "fail" raises,
    "threads" gives the number of torch's threads instead, "interrupt" raises KeyboardInterrupt, "tell" tells that it is
    half-way.
    """

    number: int
    fate: str = ""
    marker: Path | None = None
    samples: int = 1

    @property
    def key(self) -> str:
        return f"add {self.number}"

    @property
    def size(self) -> int:
        return self.samples

    def run(self, client: Adder) -> int:
        first_time = self.marker is None or not self.marker.exists()
        if self.marker is not None:
            self.marker.touch()
        if self.fate == "die" or (self.fate == "die once" and first_time):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fate == "tell":
            tell_share(0.5)
        if self.fate == "fail":
            raise SettingsError(f"expected something else than {self.number}")
        if self.fate == "interrupt":
            raise KeyboardInterrupt
        return torch.get_num_threads() if self.fate == "threads" else self.number + client.offset
