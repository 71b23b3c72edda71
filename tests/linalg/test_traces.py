"""Intervals of traces: missed as rarely as claimed, on many random problems, against dense float64."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import SPECTRA, stack, starts
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Array, random_spectrum_matrix
from scipy.stats import binom

from riskaudit.linalg import (
    Deflation,
    Interval,
    KrylovSpace,
    MatrixOperator,
    TraceProbes,
    deflatable,
    effective_dimension_bounds,
    form_high,
    lanczos,
    trace_interval,
    upper_end,
)

COUNT, N, PROBES, FAILURE = 100, 60, 5, 0.01
KINDS = {
    **SPECTRA,
    "power-law": lambda rng, n: np.arange(1.0, n + 1) ** -2,
    "eight-decades": lambda rng, n: 10.0 ** rng.uniform(-8, 0, n),
    "few-decades-then-zero": lambda rng, n: np.concatenate([10.0 ** -np.arange(8), np.zeros(n - 8)]),
}


def never(_: int, __: object) -> bool:
    return False


def spectrum_of(kind: str) -> Array:
    rng = np.random.default_rng(0)
    return np.array([np.sort(KINDS[kind](rng, N)) for _ in range(COUNT)])


def eps_of(kind: str) -> float:
    return 0.01 * float(np.median(spectrum_of(kind)[:, -1]))


@cache
def first_pass(kind: str, dtype: torch.dtype) -> tuple[MatrixOperator, list[KrylovSpace]]:
    rng = np.random.default_rng(1)
    matrices = stack([random_spectrum_matrix(values, rng) for values in spectrum_of(kind)]).matrices
    operator = MatrixOperator(matrices.to(dtype), psd=True)
    return operator, lanczos(operator, starts(COUNT, N, seed=2).to(dtype), never, 16)


@cache
def probes_of(kind: str, deflated: bool, dtype: torch.dtype = torch.float64) -> list[TraceProbes]:
    operator, spaces = first_pass(kind, dtype)
    start = starts(COUNT * PROBES, N, seed=3).to(dtype).reshape(COUNT, PROBES, N)
    chosen: list[list[int]] = [[]] * COUNT
    if deflated:
        chosen = [deflatable(space.tridiagonal, eps_of(kind)) for space in spaces]
        for sample, (space, indices) in enumerate(zip(spaces, chosen, strict=True)):
            Y = space.ritz_vectors(indices)
            for _ in range(2):
                start[sample] -= start[sample] @ Y.T @ Y
    repeated = MatrixOperator(operator.matrices.repeat_interleave(PROBES, 0), psd=True)
    own = lanczos(repeated, start.reshape(-1, N), never, 20)
    probes = []
    for sample, (space, indices) in enumerate(zip(spaces, chosen, strict=True)):
        pairs = space.tridiagonal.ritz()
        probes.append(
            TraceProbes(
                [each.tridiagonal for each in own[sample * PROBES : (sample + 1) * PROBES]],
                FAILURE,
                N,
                largest=upper_end(space.tridiagonal, 1e-9),
                deflation=Deflation(pairs.values[indices], pairs.residuals[indices]),
            )
        )
    return probes


def misses(intervals: list[Interval], truth: Array) -> int:
    low, value, high = (np.array([getattr(each, name) for each in intervals]) for name in ("low", "value", "high"))
    assert (low <= value).all()
    assert (value <= high).all()
    return int(np.sum((low > truth * (1 + 1e-9)) | (high < truth * (1 - 1e-9))))


def most_misses(failure: float = FAILURE, count: int = COUNT) -> float:
    return binom.ppf(0.9999, count, failure)


# As audits compute them on every spectrum, and plain on the flattest, the steepest and the singular one.
PLAIN = ("uniform", "eight-decades", "few-decades-then-zero")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "deflated"),
    [
        pytest.param(kind, deflated, marks=[pytest.mark.slow] * (not deflated and kind not in PLAIN))
        for kind in KINDS
        for deflated in (False, True)
    ],
)
def test_intervals_hold_as_often_as_claimed(kind: str, deflated: bool) -> None:
    assert_intervals_hold(kind, deflated, torch.float64)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["uniform", "one-large", "few-decades-then-zero"])
def test_intervals_hold_in_float32(kind: str) -> None:
    assert_intervals_hold(kind, True, torch.float32)


def assert_intervals_hold(kind: str, deflated: bool, dtype: torch.dtype) -> None:
    values = spectrum_of(kind)
    # The float32 matrix's own eigenvalues are off by rounding, which a trace of small ones shows.
    if dtype == torch.float32:
        matrices = first_pass(kind, dtype)[0].matrices.double()
        values = np.maximum(torch.linalg.eigvalsh((matrices + matrices.mT) / 2).numpy(), 0)
    probes = probes_of(kind, deflated, dtype)
    for factor in (1e-6, 1.0, 1e5):
        eps = factor * eps_of(kind)
        dimension = [each.effective_dimension(eps) for each in probes]
        assert misses(dimension, (values / (values + eps)).sum(-1)) <= most_misses()
        variance = [each.variance(eps) for each in probes]
        assert misses(variance, (values / (values + eps) ** 2).sum(-1)) <= most_misses()
    assert misses([each.trace() for each in probes], values.sum(-1)) <= most_misses()
    if values.min() > 0:
        truth = (1 / values).sum(-1)
        blind = [each.inverse_trace() for each in probes]
        assert misses(blind, truth) <= most_misses()
        assert all(each.high == math.inf for each in blind)
        told = [each.inverse_trace(0.9 * own.min()) for each, own in zip(probes, values, strict=True)]
        assert misses(told, truth) <= most_misses()


def relative_width(intervals: list[Interval]) -> float:
    return float(np.median([(each.high - each.low) / each.value for each in intervals]))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "narrower"), [("geometric", 0.05), ("few-decades-then-zero", 0.01), ("power-law", 0.8), ("one-large", 0.9)]
)
def test_deflation_narrows_where_the_spectrum_decays(kind: str, narrower: float) -> None:
    eps = eps_of(kind)
    plain, deflated = (probes_of(kind, flag) for flag in (False, True))
    for read in (lambda each: each.effective_dimension(eps), TraceProbes.trace):
        widths = [relative_width([read(each) for each in probes]) for probes in (plain, deflated)]
        assert widths[1] < narrower * widths[0]


def test_values_are_near_the_truth() -> None:
    eps, values = eps_of("power-law"), spectrum_of("power-law")
    for deflated, tolerance in ((False, 0.2), (True, 0.1)):
        probes = probes_of("power-law", deflated)
        for read, truth in (
            (lambda each: each.effective_dimension(eps).value, values / (values + eps)),
            (lambda each: each.variance(eps).value, values / (values + eps) ** 2),
        ):
            errors = np.array([read(each) for each in probes]) / truth.sum(-1) - 1
            assert abs(np.mean(errors)) < 0.02
            assert np.std(errors) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("deflated", [False, True], ids=["plain", "deflated"])
def test_limits_of_the_effective_dimension(deflated: bool) -> None:
    full, flat = probes_of("uniform", deflated)[0], probes_of("few-decades-then-zero", deflated)[0]
    assert full.effective_dimension(1e-14).low > 0.9 * N
    assert full.effective_dimension(1e-14).high == pytest.approx(N, rel=1e-9)
    assert full.effective_dimension(1e15).high < 1e-12
    # Small by a factor that a norm of 1 couldn't tell from 1 / N.
    assert full.effective_dimension(1e15).low > 0
    assert full.effective_dimension(math.inf) == full.variance(math.inf) == Interval(0, 0, 0)
    assert flat.effective_dimension(1e-6).high < 20
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="eps must be positive"):
            full.effective_dimension(eps)


def test_zero_operator_has_traces_of_zero() -> None:
    spaces = lanczos(stack([np.zeros((5, 5))] * 4), starts(4, 5), never, 5)
    probes = TraceProbes([space.tridiagonal for space in spaces], 0.01, 5)
    assert probes.effective_dimension(0.1) == probes.variance(0.1) == probes.trace() == Interval(0, 0, 0)


def test_everything_deflated_needs_no_probe() -> None:
    rng = np.random.default_rng(4)
    values = np.sort(rng.uniform(0.1, 1, 6))
    (space,) = lanczos(stack([random_spectrum_matrix(values, rng)]), starts(1, 6), never, 6)
    pairs = space.tridiagonal.ritz()
    probes = TraceProbes([], 0.01, 6, deflation=Deflation(pairs.values, pairs.residuals))
    for interval, truth in (
        (probes.effective_dimension(0.01), np.sum(values / (values + 0.01))),
        (probes.variance(0.01), np.sum(values / (values + 0.01) ** 2)),
        (probes.inverse_trace(0.09), np.sum(1 / values)),
        (probes.trace(), np.sum(values)),
    ):
        assert interval.low == pytest.approx(truth, rel=1e-9)
        assert interval.high == pytest.approx(truth, rel=1e-9)


def test_no_probe_at_all_knows_what_is_certain() -> None:
    probes = TraceProbes([], 0.01, 5, largest=3.0, deflation=Deflation(np.array([2.0]), np.array([0.0])))
    interval = probes.effective_dimension(1.0)
    assert interval.low == pytest.approx(2 / 3)
    assert interval.high == pytest.approx(2 / 3 + 4 * 3 / 4)
    assert probes.trace().high == pytest.approx(2 + 4 * 3)


def test_probes_stopped_before_their_first_product_say_nothing_wrong() -> None:
    spaces = lanczos(stack([np.eye(5)] * 4), starts(4, 5), never, 0)
    probes = TraceProbes([space.tridiagonal for space in spaces], 0.01, 5, largest=1.0)
    dimension, trace = probes.effective_dimension(1.0), probes.trace()
    assert (dimension.low, trace.low) == (0, 0)
    assert dimension.high >= 2.5
    assert trace.high == 5
    assert probes.inverse_trace().high == math.inf


def test_arguments_must_fit() -> None:
    with pytest.raises(ValueError, match="2 Ritz values, but 1 residuals"):
        Deflation(np.ones(2), np.ones(1))


@pytest.mark.parametrize("failure", [0.2, 0.02])
@pytest.mark.parametrize("num_probes", [1, 5, 30])
@pytest.mark.parametrize("kind", ["one", "equal", "mixed"])
def test_trace_interval_holds_as_often_as_claimed(kind: str, num_probes: int, failure: float) -> None:
    eigenvalues = {"one": np.array([1.0]), "equal": np.ones(20), "mixed": 0.5 ** np.arange(10)}[kind]
    rng, trials = np.random.default_rng(5), 1500
    means = (rng.chisquare(1, (trials, num_probes, len(eigenvalues))) @ eigenvalues).mean(-1)
    for norm in (eigenvalues.max(), 3 * eigenvalues.max(), math.inf):
        ends = [trace_interval(mean, mean, num_probes, norm, failure) for mean in means]
        trace = eigenvalues.sum()
        below, above = (np.sum([end[0] > trace for end in ends]), np.sum([end[1] < trace for end in ends]))
        assert max(below, above) <= most_misses(failure / 2, trials)


@given(low=st.floats(1e-6, 1e6), ratio=st.floats(1, 1e3), probes=st.integers(1, 100), norm=st.floats(1e-6, 1e6))
def test_trace_interval_solves_its_own_equation(low: float, ratio: float, probes: int, norm: float) -> None:
    failure, target = 0.01, math.log(2 / 0.01)

    def exponent(trace: float, mean: float, bound: float) -> float:
        """-log of the tail's bound at a mean so far from this trace."""
        excess = (mean - trace) / trace
        return probes / (2 * bound) * trace * (excess - math.log1p(excess))

    ends = trace_interval(low, ratio * low, probes, norm, failure)
    for end, mean in zip(ends, (low, ratio * low), strict=True):
        # The smaller of norm and trace bounds ||A||. Ends nearer than 1e-6 are lost in the check's own rounding.
        if abs(mean / end - 1) > 1e-6:
            assert exponent(end, mean, min(norm, end)) == pytest.approx(target, rel=1e-3)
        assert ends[0] < low <= ratio * low < ends[1]


def test_trace_interval_without_an_upper_end() -> None:
    low, high = trace_interval(2.0, math.inf, 10, 1.0, 0.01)
    assert 0 < low < 2
    assert high == math.inf
    assert trace_interval(0.0, 0.0, 10, 1.0, 0.01) == (0, 0)
    assert trace_interval(0.0, 0.0, 0, 1.0, 0.01) == (0, math.inf)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", [1, 4, 16])
def test_bounds_without_probes_hold_for_certain(kind: str, products: int) -> None:
    operator, _ = first_pass(kind, torch.float64)
    count = COUNT // 3  # no chance is in these bounds
    spaces = lanczos(operator.select(list(range(count))), starts(count, N, seed=6), never, products)
    for values, space in zip(spectrum_of(kind)[:count], spaces, strict=True):
        for eps in (1e-8, 1e-2, 10.0):
            truth = np.sum(values / (values + eps))
            ritz, slack = space.tridiagonal.ritz().values, space.tridiagonal.slack()
            low, high = effective_dimension_bounds(ritz, N, values.sum(), eps, slack)
            assert low <= truth * (1 + 1e-9)
            assert high >= truth * (1 - 1e-9)
            assert effective_dimension_bounds(ritz, N, math.inf, eps, slack)[1] >= high
    assert effective_dimension_bounds(values, N, values.sum(), 1e-2) == pytest.approx(
        (np.sum(values / (values + 1e-2)),) * 2
    )


@settings(max_examples=200, deadline=None)
@given(
    logarithms=st.lists(st.floats(-6, 2), min_size=2, max_size=8),
    log_eps=st.floats(-4, 2),
    log_error=st.floats(-6, 0),
    seed=st.integers(0, 2**16),
)
def test_deflated_part_is_bracketed_however_poor_its_vector(
    logarithms: list[float], log_eps: float, log_error: float, seed: int
) -> None:
    rng, eps = np.random.default_rng(seed), 10.0**log_eps
    values, vectors = np.linalg.eigh(random_spectrum_matrix(10.0 ** np.array(logarithms), rng))
    y = vectors[:, rng.integers(len(values))] + 10.0**log_error * rng.standard_normal(len(values))
    weights = (vectors.T @ y) ** 2 / (y @ y)
    ritz = float(weights @ values)
    residual = math.sqrt(max(0.0, float(weights @ (values - ritz) ** 2)))
    deflation = Deflation(np.array([ritz]), np.array([residual]))
    for (low, high), truth in (
        (deflation._ritz_shares(eps, 0.0), weights @ (values / (values + eps))),
        (deflation._ritz_variances(eps, 0.0), weights @ (values / (values + eps) ** 2)),
    ):
        assert low <= truth * (1 + 1e-9) + 1e-9
        assert high >= truth * (1 - 1e-9) - 1e-9
        if residual**2 / eps <= 1e-4 * (ritz + eps):
            assert high - low <= 0.05 * max(1.0, 1 / eps)


def test_rounding_in_the_null_space_is_no_information() -> None:
    values = spectrum_of("few-decades-then-zero")[0]
    operator, _ = first_pass("few-decades-then-zero", torch.float32)
    (space,) = lanczos(operator.select([0]), starts(1, N).float(), never, 20)
    ritz, eps = space.tridiagonal.ritz().values, 1e-10
    truth = np.sum(values / (values + eps))
    assert effective_dimension_bounds(ritz, N, values.sum(), eps)[0] > truth
    assert effective_dimension_bounds(ritz, N, values.sum(), eps, space.tridiagonal.slack())[0] <= truth


def test_deflatable_pairs_have_small_residuals() -> None:
    _, spaces = first_pass("geometric", torch.float64)
    eps = eps_of("geometric")
    for space in spaces[:20]:
        chosen, pairs = deflatable(space.tridiagonal, eps), space.tridiagonal.ritz()
        share = pairs.residuals**2 / eps / (pairs.values + eps)
        assert (share[chosen] <= 0.01).all()
        assert (np.delete(share, chosen) > 0.0099).all()
        assert len(chosen) > len(deflatable(space.tridiagonal, 1e-6 * eps))


@pytest.mark.parametrize("failure", [0.3, 0.01])
@pytest.mark.parametrize("values", [np.array([2.0]), np.linspace(0, 1, 30), np.array([1.0] + [1e-3] * 50)])
def test_single_forms_exceed_their_end_as_rarely_as_claimed(values: Array, failure: float) -> None:
    forms = np.random.default_rng(0).chisquare(1, (4000, len(values))) @ values
    end = form_high(float(values.sum()), float(values.max()), failure)
    assert end > values.sum()
    assert np.sum(forms > end) <= binom.ppf(0.9999, len(forms), failure)
    assert form_high(math.inf, 1.0, failure) == math.inf
    assert form_high(0.0, 1.0, failure) == 0
