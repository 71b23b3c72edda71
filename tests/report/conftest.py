"""Fixtures of the report tests: audits by name, and their rendered formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from report_cases import CASES
from report_hostile import HOSTILE
from report_reading import Report
from upload_cases import uploads

from riskaudit.results import AuditResult


@pytest.fixture(scope="session")
def audit() -> Callable[[str], AuditResult]:
    """The audit of a case by name, built once per session: studies of attacks take a second or two."""
    return cache(lambda name: (CASES | {"uploads": uploads})[name]())


@pytest.fixture(scope="session")
def report(audit: Callable[[str], AuditResult]) -> Callable[[str], Report]:
    """The report of a case as blocks, laid out once per session: a tenth of a second, where a page takes two."""
    return cache(lambda name: Report.of(audit(name)))


@pytest.fixture(scope="session")
def hostile_strings() -> tuple[str, ...]:
    return HOSTILE


@pytest.fixture(scope="session")
def rendered(audit: Callable[[str], AuditResult]) -> Callable[..., bytes]:
    """One rendered format of a case, rendered once per session."""
    from riskaudit.report import FILE_NAMES, render

    done: dict[tuple[str, str], bytes] = {}

    def get(name: str, format_: str) -> bytes:
        if (name, format_) not in done:
            done[name, format_] = render(audit(name), (format_,))[FILE_NAMES[format_]]
        return done[name, format_]

    return get
