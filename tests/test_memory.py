"""Large tensors get the memory of those before them, so that the system needn't clear it anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from riskaudit.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
# Small blocks settle in what is free at first, so that a few more large ones are needed.
for _ in range(20):
    torch.ones(25_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(25_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(mode: str, **environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], env=clean | environment, check=True, capture_output=True, text=True
    ).stdout.split()
    return words[0] == "True", int(words[1])


def test_pages_are_cleared_once() -> None:
    kept, few = faults("keep")
    assert kept
    assert few < faults("leave")[1] / 4


def test_own_settings_of_the_user_stay() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
