"""Point values of iterations that were cut short lie near the truth, not at an end of their interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riskaudit.linalg import TraceProbes, lanczos
from riskaudit.linalg.krylov.quadrature import middle
from riskaudit.linalg.operators import MatrixOperator
from riskaudit.sensitivity.estimates import WIDEST

EPS = 1e-3


def _probes(values: torch.Tensor, depth: int, number: int = 4) -> list:
    generator = torch.Generator().manual_seed(depth)
    operator = MatrixOperator(torch.diag(values)[None], psd=True)
    starts = [torch.randn(1, len(values), generator=generator, dtype=torch.float64) for _ in range(number)]
    return [lanczos(operator, start, lambda _, __: False, depth)[0].tridiagonal for start in starts]


def _spread(decades: float, zeros: int = 200) -> torch.Tensor:
    """Eigenvalues over many decades and a null space, as those of small networks' gradients are."""
    return torch.cat([10 ** torch.linspace(-decades, 0, 200, dtype=torch.float64), torch.zeros(zeros)]).double()


@pytest.mark.parametrize("depth", [3, 6, 10, 20, 40])
@pytest.mark.parametrize("decades", [2, 5, 8])
def test_effective_dimension_cut_short(depth: int, decades: float) -> None:
    values = _spread(decades)
    truth = float((values / (values + EPS)).sum())
    probes = TraceProbes(_probes(values, depth), 0.05, len(values), largest=1.0)
    found = probes.effective_dimension(EPS)
    gauss = np.mean([_gauss_share(each) for each in probes._tridiagonals])
    assert found.low <= truth <= found.high
    assert abs(found.value - truth) <= max(abs(gauss - truth), 0.12 * truth)
    # A wider interval gets no point value.
    if found.high - found.low <= WIDEST * len(values):
        assert abs(found.value / truth - 1) < 0.25


@pytest.mark.parametrize("eps", [1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("depth", [3, 10, 20])
def test_near_saturation_the_value_is_near_all(eps: float, depth: int) -> None:
    # No null space: nearly all directions are revealed.
    values = 10 ** torch.linspace(-2, 0, 200, dtype=torch.float64)
    truth = float((values / (values + eps)).sum())
    found = TraceProbes(_probes(values, depth), 0.05, len(values), largest=1.0).effective_dimension(eps)
    assert found.low <= truth <= found.high
    assert abs(found.value - truth) < 0.06 * len(values)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-9, 1), st.floats(1e-9, 1), st.floats(1e-3, 1e6))
def test_both_ends_are_treated_alike(first: float, second: float, total: float) -> None:
    lows, highs = np.array([min(first, second)]) * total, np.array([max(first, second)]) * total
    totals = np.array([total])
    value = middle(lows, highs, totals)
    assert (lows * (1 - 1e-9) <= value).all()
    assert (value <= highs * (1 + 1e-9)).all()
    if highs[0] < total * (1 - 1e-6):
        assert middle(totals - highs, totals - lows, totals) == pytest.approx(
            totals - value, rel=1e-6, abs=1e-6 * total
        )


def _gauss_share(tridiagonal) -> float:  # type: ignore[no-untyped-def]
    pairs = tridiagonal.ritz()
    values = np.maximum(pairs.values, 0.0)
    return float(tridiagonal.start_norm**2 * (pairs.vectors[0] ** 2 * values / (values + EPS)).sum())


@pytest.mark.parametrize("depth", [3, 6, 10, 20, 40])
def test_posterior_of_a_correlated_prior_cut_short(depth: int) -> None:
    # With C = 1 the weighted trace is the plain one.
    values = _spread(5)
    truth = float((EPS / (values + EPS)).sum())
    traces = TraceProbes(_probes(values, depth), 0.05, len(values), largest=1.0, scale=1.0)
    found = traces.remaining(EPS)
    assert found.low <= truth <= found.high
    # A wider interval gets no point value.
    if found.high - found.low <= WIDEST * len(values):
        assert abs((len(values) - found.value) / (len(values) - truth) - 1) < 0.35


def test_inverse_trace_cut_short() -> None:
    values = 10 ** torch.linspace(-3, 0, 200, dtype=torch.float64)
    found = TraceProbes(_probes(values, 10), 0.05, len(values), largest=1.0).inverse_trace(1e-3)
    truth = float((1 / values).sum())
    low = np.mean(
        [TraceProbes([one], 0.05, len(values), largest=1.0).inverse_trace(0.0).value for one in _probes(values, 10)]
    )
    assert abs(found.value - truth) < abs(low - truth)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e12), st.floats(0, 1e12) | st.just(float("inf"))), min_size=1, max_size=8))
def test_middle_lies_between(pairs: list[tuple[float, float]]) -> None:
    lows, highs = np.array([min(pair) for pair in pairs]), np.array([max(pair) for pair in pairs])
    found = middle(lows, highs)
    assert np.isfinite(found).all()
    assert (found >= lows * (1 - 1e-12)).all()
    assert (found <= highs * (1 + 1e-12)).all()


def test_middle_of_equal_rules_is_exact() -> None:
    assert middle(np.array([0.25, 0.0]), np.array([0.25, 0.0])) == pytest.approx([0.25, 0.0])
