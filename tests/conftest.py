"""What holds for every test: one thread each, a browser, assertions in the shared helpers that explain themselves."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Matrices here are small, and threads that wait for each other make a busy machine many times slower.
# Set before torch is loaded, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Keys and counters of ledgers and logs, away from the user's own; processes that tests start share them.
os.environ["RISKAUDIT_STATE"] = tempfile.mkdtemp(prefix="riskaudit-keys-")
atexit.register(shutil.rmtree, os.environ["RISKAUDIT_STATE"], ignore_errors=True)

pytest.register_assert_rewrite("cases", "oracles", "contracts", "correlated_cases", "scan_cases", "guard_cases")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless browser that is allowed no network, or a skip with the reason."""
    path = os.environ.get("RISKAUDIT_CHROMIUM") or shutil.which("chromium")
    if path is None or not Path(path).exists():
        pytest.skip("no chromium: set RISKAUDIT_CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()
