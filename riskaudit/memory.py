"""How a process gets memory from the system, where that takes longer than computing."""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# As a threshold: whatever lies free at the heap's end, nothing is given back.
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of large tensors that were freed for the next ones, in this process.

    By default glibc gives back blocks above 32 MB at once, and every product with a large model's Jacobian makes some:
    the system clears their pages again and again, which is half of the processor time of a scan of all-MiniLM-L6-v2
    (benchmarks/RESULTS.md).

    Returns:
        Whether it does: not with another C library, nor where the environment has settings of its own.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        # Of glibc alone, whose mallopt this is.
        mallopt, _ = library.mallopt, library.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
