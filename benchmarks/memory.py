"""Peak memory of a piece of work, each in a process of its own.

On a processor it is the resident set's highest size minus what was resident before the work. A small piece
of the same work runs first, so that libraries that load on first use are not counted. On CUDA it is the
allocator's own count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

# (a small piece of the work, the work).
Work = tuple[Callable[[], object], Callable[[], object]]
STATUS = Path("/proc/self/status")
# A process that wants more than this part of the free memory fails, rather than press others out of it.
SHARE_OF_FREE_MEMORY = 0.8
OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc")


def peak_memory(prepare: Callable[..., Work], device: torch.device, *arguments: Any) -> int | None:
    """Bytes that the work took at its peak, or None where memory ran out.

    Args:
        prepare: an importable function that makes the work from ``arguments`` in the new process.
        device: where the work is done.
        arguments: what can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, prepare, device, arguments).result()
        except BrokenProcessPool:
            return None


def mebibytes(num_bytes: int | None) -> float | str:
    """What `peak_memory` returned, for a table."""
    return "out of memory" if num_bytes is None else num_bytes / 2**20


def _measure(prepare: Callable[..., Work], device: torch.device, arguments: tuple[Any, ...]) -> int | None:
    small, work = prepare(*arguments)
    try:
        if device.type == "cuda":
            return _peak_on_cuda(small, work, device)
        _limit_memory()
        return _peak_of_process(small, work)
    except MemoryError:
        return None
    except RuntimeError as error:
        # The processor's allocators say it in words only.
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            return None
        raise


def _peak_on_cuda(small: Callable[[], object], work: Callable[[], object], device: torch.device) -> int:
    small()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_process(small: Callable[[], object], work: Callable[[], object]) -> int:
    small()
    gc.collect()
    _return_freed_memory()
    _forget_peak()
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(kind: str) -> int:
    """Bytes resident now (VmRSS) or at most (VmHWM).

    Not ru_maxrss where there is a choice: on Linux a new process inherits its parent's.
    """
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        if kind in lines:
            return 1024 * int(lines[kind].split()[0])
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def _return_freed_memory() -> None:
    """Have glibc hand freed memory back, which would otherwise hide what the work takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> None:
    """Start the count of VmHWM anew; where that isn't allowed, what was done before may hide the work's peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _limit_memory() -> None:
    """Have allocations fail before others on the machine feel them."""
    available = Path("/proc/meminfo")
    if not available.exists():
        return
    for line in available.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            limit = int(SHARE_OF_FREE_MEMORY * 1024 * int(line.split()[1]))
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
