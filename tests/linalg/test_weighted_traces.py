"""Traces of L f(K) L against dense matrices, deflated or not, at any eps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch

from riskaudit.linalg import Deflation, MatrixOperator, TraceProbes, lanczos

DIMENSION = 40
EPS = (1e-6, 1e-3, 0.05, 1.0, 1e4)


def matrices(seed: int):
    """H, a prior's covariance with a few large eigenvalues, and its root and eigenvectors."""
    rng = np.random.default_rng(seed)
    H = oracles.random_spectrum_matrix(np.geomspace(30, 1e-6, DIMENSION), rng)
    values = np.r_[np.geomspace(4, 0.5, 5), np.full(DIMENSION - 5, 0.02)]
    vectors, _ = np.linalg.qr(rng.standard_normal((DIMENSION, DIMENSION)))
    return H, (vectors * values) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T, values, vectors


def probed(seed: int, deflated: int, steps: int, probes: int = 8) -> tuple[TraceProbes, oracles.Array, oracles.Array]:
    H, C, L, values, vectors = matrices(seed)
    K = L @ H @ L
    rng = np.random.default_rng(1000 + seed)
    projector = np.eye(DIMENSION) - vectors[:, :deflated] @ vectors[:, :deflated].T

    def tridiagonals(starts):
        operator = MatrixOperator(torch.from_numpy(K)[None].repeat(len(starts), 1, 1), psd=True)
        return [space.tridiagonal for space in lanczos(operator, torch.from_numpy(starts), lambda *_: False, steps)]

    starts = rng.standard_normal((probes, DIMENSION)) @ projector @ L
    known = tridiagonals((L @ vectors[:, :deflated]).T) if deflated else []
    largest = float(values[0] * np.linalg.eigvalsh(H)[-1])
    traces = TraceProbes(
        tridiagonals(starts),
        0.01,
        float(values.sum()),
        norm=float(values[deflated]),
        largest=largest,
        scale=largest,
        deflation=Deflation(None, None, known, values[:deflated].tolist(), largest),
    )
    return traces, K, C


@pytest.mark.sampled(3)
@pytest.mark.parametrize("deflated", [0, 3, 5])
@pytest.mark.parametrize("steps", [1, 6, 40])
def test_intervals_hold_the_truth(deflated: int, steps: int) -> None:
    misses = 0
    for seed in range(25):
        traces, K, C = probed(seed, deflated, steps)
        for eps in EPS:
            inverse = np.linalg.inv(K + eps * np.eye(DIMENSION))
            # L f(K) L has the eigenvalues of f(K) C.
            assert traces.norm_remaining(eps) >= np.linalg.eigvals(eps * inverse @ C).real.max() * (1 - 1e-9)
            # tr L f(K) L = tr C f(K).
            for found, truth in (
                (traces.remaining(eps), eps * np.trace(C @ inverse)),
                (traces.effective_dimension(eps), np.trace(C @ K @ inverse)),
                (traces.variance(eps), np.trace(C @ K @ inverse @ inverse)),
            ):
                assert found.low <= found.value <= found.high
                assert found.low >= 0
                misses += not found.low * (1 - 1e-7) <= truth <= found.high * (1 + 1e-7)
    # 375 intervals that hold with 99 % each.
    assert misses <= 12


def test_deflation_narrows() -> None:
    widths = []
    for deflated in (0, 5):
        found = probed(0, deflated, 40)[0].remaining(0.05)
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_the_lower_end_grows_with_eps() -> None:
    traces, _, _ = probed(1, 3, 10)
    found = [traces.remaining(eps) for eps in np.geomspace(1e-8, 1e6, 60)]
    ends = [each.low for each in found]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(ends))


def test_no_probe_says_what_is_certain() -> None:
    traces = TraceProbes([], 0.01, 3.0, largest=2.0)
    found = traces.remaining(2.0)
    assert (found.low, found.high) == (pytest.approx(1.5), pytest.approx(3.0))
    assert traces.remaining(np.inf).low == 3.0
    assert traces.variance(np.inf).high == 0.0
    open_end = TraceProbes([], 0.01, 3.0).remaining(2.0)
    assert (open_end.low, open_end.high) == (0.0, 3.0)
