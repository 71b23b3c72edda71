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

import typer

Progress = Callable[[int, int], None]
# Seconds of silence in a log after which a line says that work goes on; then twice as many each time.
_SILENCE = 5.0
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
def progress(quiet: bool, done: str = "audited", what: str = "samples", advice: str = "") -> Iterator[Progress]:
    """A progress bar on a terminal, plain lines elsewhere, nothing when quiet; all on stderr.

    An interrupt ends the work after the present batch at the latest. ``done`` says what becomes of ``what``, ``advice``
    what to do where the first of them takes long.
    """
    with _interrupts() as pressed, _shown(quiet, done, what, advice) as show:

        def update(done: int, total: int) -> None:
            if pressed():
                raise KeyboardInterrupt
            show(done, total)

        yield update


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
def _shown(quiet: bool, verb: str, what: str, advice: str) -> Iterator[Progress]:
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(verb) as update:
            yield update
    else:
        with _lines(verb, what, advice) as update:
            yield update


@contextmanager
def _lines(verb: str, what: str, advice: str) -> Iterator[Progress]:
    """A line per step, from the second one on with the time that is left at the pace so far."""
    from riskaudit.formatting import duration

    started, at = time.monotonic(), [(0, 0)]

    def reached() -> str:
        done, total = at[-1]
        return f"{verb} {done} of {total} {what}" if total else f"{what}: none {verb} yet"

    def waiting() -> str:
        is_long = time.monotonic() - started > _PATIENCE and not at[-1][1]
        return f"still at work: {reached()}" + (f" ({advice})" if advice and is_long else "")

    with _heartbeat(waiting) as said:

        def update(done: int, total: int) -> None:
            seconds, first = time.monotonic() - started, len(at) == 1
            at.append((done, total))
            left = seconds * (total - done) / done if 0 < done < total else 0.0
            pace = f", about {duration(left)} left" if left and seconds > 1 and not first else ""
            typer.echo(reached() + pace, err=True)
            said()

        yield update


@contextmanager
def _bar(verb: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
