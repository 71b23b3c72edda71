"""Reviews run one at a time and with modes of their own, whatever other threads and the caller do.

torch.func exchanges parameters in place and counts its levels per process, so that two reviews would disturb each
other. Inference mode and autocast, which may be on where a review is called, are off in it: it differentiates,
precisely. So is TF32, which leaves CUDA devices 10 bits of a number.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

from riskaudit.audit.precision import full_single_precision

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


# Whose turn it is; a thread that has it may begin another review inside its own.
_turn = [threading.RLock()]
# A child process has none of the threads that may hold the lock.
os.register_at_fork(after_in_child=lambda: _turn.__setitem__(0, threading.RLock()))


def isolated(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """A function that waits for others like it in all threads, and runs without inference mode, autocast and TF32."""

    @functools.wraps(function)
    def waiting(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with _turn[0], ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(full_single_precision())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return waiting
