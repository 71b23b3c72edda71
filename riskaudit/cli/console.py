"""Progress on a terminal or in a log."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

Progress = Callable[[int, int], None]


@contextmanager
def progress(quiet: bool, done: str = "audited", what: str = "samples") -> Iterator[Progress]:
    """A progress bar on a terminal, plain lines elsewhere, nothing when quiet; all on stderr.

    An interrupt ends the work after the present batch at the latest. ``done`` says what becomes of ``what``.
    """
    with _interrupts() as pressed, _shown(quiet, done, what) as show:

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
def _shown(quiet: bool, verb: str, what: str) -> Iterator[Progress]:
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(verb) as update:
            yield update
    else:
        yield lambda done, total: typer.echo(f"{verb} {done} of {total} {what}", err=True)


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
