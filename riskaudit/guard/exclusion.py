"""One review at a time in a process: torch.func exchanges parameters in place and counts its levels per process."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


class _Turn:
    """Whose turn it is; a thread that has it may begin another review inside its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # A child process has none of the threads that may hold the lock.
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.RLock()


_turn = _Turn()


def one_at_a_time(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """A function that waits until no other thread is in a function like it."""

    @functools.wraps(function)
    def waiting(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with _turn.lock:
            return function(*args, **kwargs)

    return waiting
