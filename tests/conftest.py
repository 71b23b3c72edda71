"""What holds for every test: one thread each, a browser, assertions in the shared helpers that explain themselves."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Matrices here are small, and threads that wait for each other make a busy machine many times slower.
# Set before torch is loaded, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Keys and counters of ledgers and logs, away from the user's own; processes that tests start share them.
os.environ["RISKAUDIT_STATE"] = tempfile.mkdtemp(prefix="riskaudit-keys-")
atexit.register(shutil.rmtree, os.environ["RISKAUDIT_STATE"], ignore_errors=True)

pytest.register_assert_rewrite("cases", "oracles", "contracts", "correlated_cases", "scan_cases", "guard_cases")


# Cases of a test that run always, so that all tests together take minutes; `make test-slow` runs the others.
CASES = 3


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test's cases, some spread evenly over its parameters run always; the others are slow.

    How many is said by a mark `sampled(n)`, else it is `CASES`.
    """
    families: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not any(map(item.get_closest_marker, ("slow", "integration", "gpu"))):
            families[item.nodeid.split("[")[0]].append(item)
    for family in families.values():
        marker = family[0].get_closest_marker("sampled")
        (count,) = (CASES,) if marker is None else marker.args
        kept = {round(place * (len(family) - 1) / max(1, count - 1)) for place in range(count)}
        for place, item in enumerate(family):
            if len(family) > count and place not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks and inputs drawn without a seed are the same ones whatever ran before."""
    torch.manual_seed(0)


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
