"""Fixtures of the report tests: audits by name, their rendered formats, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_cases import CASES
from report_hostile import HOSTILE

from riskaudit.results import AuditResult


@pytest.fixture(scope="session")
def audit() -> Callable[[str], AuditResult]:
    """The audit of a case by name."""
    return lambda name: CASES[name]()


@pytest.fixture(scope="session")
def hostile_strings() -> tuple[str, ...]:
    return HOSTILE


@pytest.fixture(scope="session")
def rendered() -> Callable[..., bytes]:
    """One rendered format of a case, rendered once per session."""
    from riskaudit.report import FILE_NAMES, render

    done: dict[tuple[str, str], bytes] = {}

    def get(name: str, format_: str) -> bytes:
        if (name, format_) not in done:
            done[name, format_] = render(CASES[name](), (format_,))[FILE_NAMES[format_]]
        return done[name, format_]

    return get


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
