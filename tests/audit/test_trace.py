"""tr H beside the solvers' other evidence: exact from all eigenvalues, an interval from probes."""

from __future__ import annotations

import pytest
from study_cases import digits, network

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit


def traces(**options: object):
    return [row.solvers.get("trace") for row in audit(network(), digits(2), AuditSettings(**options)).samples]


def test_exact_and_bracketed() -> None:
    exact = traces(solver="dense")
    for known, found in zip(exact, traces(solver="lanczos"), strict=True):
        assert known.status == "exact"
        assert found.status == "bracketed"
        assert found.low <= known.value <= found.high
        assert found.value == pytest.approx(known.value, rel=0.3)


@pytest.mark.slow
def test_nothing_is_computed_for_it() -> None:
    assert traces(proxies=("gradient_norm",)) == [None, None]
    assert traces(solver="power") == [None, None]
