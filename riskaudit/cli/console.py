"""Progress on a terminal or in a log: what is being done, how far it is, and about how long it will take.

`progress` is for work that is counted, `working` for what is not. In a log, work that says nothing for a while is
said to go on.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from riskaudit.engine import FineProgress

# Seconds of silence in a log after which a line says that work goes on; then twice as many each time.
_SILENCE = 5.0
# A share that tells nothing of how long the rest will take.
_LITTLE = 0.02
# Seconds without a first result after which a line says what can be done.
_PATIENCE = 30.0


@contextmanager
def working(quiet: bool, what: str) -> Iterator[None]:
    """Say on stderr that something is being done: at once on a terminal, in a log only once it takes long.

    Args:
        quiet: say nothing.
        what: is being done, as in "writing the report".
    """
    if quiet:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(what)):
            yield
    else:
        with _heartbeat(lambda: what):
            yield


@contextmanager
def _heartbeat(what: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Lines on stderr while nothing else is said; what is yielded is to be called when something was."""
    from riskaudit.formatting import duration

    started, silence, ended = time.monotonic(), _SILENCE, threading.Event()
    last = [started]

    def watch() -> None:
        pause = silence
        while not ended.wait(max(0.05, last[0] + pause - time.monotonic())):
            if time.monotonic() < last[0] + pause:
                continue
            last[0] = time.monotonic()
            pause *= 2
            typer.echo(f"{what()}, {duration(last[0] - started)} so far", err=True)

    def said() -> None:
        last[0] = time.monotonic()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        ended.set()
        thread.join()


@contextmanager
def progress(quiet: bool, done: str = "audited", what: str = "samples", advice: str = "") -> Iterator[FineProgress]:
    """A progress bar on a terminal, plain lines elsewhere, nothing when quiet; all on stderr.

    An interrupt ends the work after the present batch at the latest. ``done`` says what becomes of ``what``, ``advice``
    what to do where the first of them takes long.
    """
    with _interrupts() as pressed, _shown(quiet, done, what, advice) as show:
        yield _Interruptible(show, pressed)


class _Interruptible:
    """Shows progress until an interrupt comes."""

    def __init__(self, shown: FineProgress, pressed: Callable[[], bool]) -> None:
        self._shown, self._pressed = shown, pressed

    def __call__(self, done: int, total: int, /) -> None:
        self._check()
        self._shown(done, total)

    def show_under_way(self, amount: float, /) -> None:
        self._check()
        self._shown.show_under_way(amount)

    def _check(self) -> None:
        if self._pressed():
            raise KeyboardInterrupt


class _Silent:
    def __call__(self, done: int, total: int, /) -> None:
        """Nothing is shown."""

    def show_under_way(self, amount: float, /) -> None:
        """Likewise."""


class _Lines:
    """A line per step, from the second one on with the time that is left at the pace so far."""

    def __init__(self, verb: str, what: str, advice: str) -> None:
        self._verb, self._what, self._advice = verb, what, advice
        self._started, self._lines = time.monotonic(), 0
        self._done, self._total, self._under_way = 0, 0, 0.0
        self._said: Callable[[], None] | None = None

    @contextmanager
    def shown(self) -> Iterator[FineProgress]:
        with _heartbeat(self._waiting) as self._said:
            yield self

    def __call__(self, done: int, total: int, /) -> None:
        news, self._done, self._total, self._under_way = done > self._done, done, total, 0.0
        if news:
            self._lines += 1
            typer.echo(self._reached() + (self._pace() if self._lines > 1 else ""), err=True)
            if self._said is not None:
                self._said()

    def show_under_way(self, amount: float, /) -> None:
        self._under_way = amount

    def _reached(self) -> str:
        if not self._total:
            return f"{self._what}: none {self._verb} yet"
        return f"{self._verb} {self._done} of {self._total} {self._what}"

    def _pace(self) -> str:
        """The time that is left, of what is done and under way."""
        from riskaudit.formatting import duration

        done, seconds = self._done + self._under_way, time.monotonic() - self._started
        # What comes first is slower than what follows.
        is_little = done <= _LITTLE * self._total
        left = 0.0 if is_little or done >= self._total else seconds * (self._total - done) / done
        # Foreseen products are limits, which what is under way need not reach.
        most = "" if self._done else "at most "
        return f", {most}about {duration(left)} left" if left and seconds > 1 else ""

    def _waiting(self) -> str:
        is_long = time.monotonic() - self._started > _PATIENCE and not self._done
        advice = f" ({self._advice})" if self._advice and is_long else ""
        return f"still at work: {self._reached()}{self._pace()}{advice}"


class _Bar:
    """A bar, whose numbers are of what is done and whose length is of what is under way too."""

    def __init__(self, verb: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"), TimeElapsedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(verb, total=None, counts="")
        self._done = 0

    @contextmanager
    def shown(self) -> Iterator[FineProgress]:
        with self._bar:
            yield self

    def __call__(self, done: int, total: int, /) -> None:
        self._done = done
        self._bar.update(self._task, completed=done, total=total, counts=f"{done}/{total}")

    def show_under_way(self, amount: float, /) -> None:
        self._bar.update(self._task, completed=self._done + amount)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT has come; it raises KeyboardInterrupt too, which a callback inside a library may swallow."""
    seen: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(quiet: bool, verb: str, what: str, advice: str) -> Iterator[FineProgress]:
    if quiet:
        yield _Silent()
        return
    with (_Bar(verb) if sys.stderr.isatty() else _Lines(verb, what, advice)).shown() as shown:
        yield shown
