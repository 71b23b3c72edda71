"""Ends of mean eigenvalues from forms of exponentials: missed as rarely as claimed at all numbers of probes at once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import random_spectrum_matrix
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import binom
from test_ratios import SPECTRA

from riskaudit.linalg import MatrixOperator, Quadrature, Strengths, Tridiagonal, lanczos, share_ends_by_exponentials
from riskaudit.linalg.krylov.exponentials import least_mean

DRAWS, PROBES = 400, 4
DTYPES = (torch.float32, torch.float64)


def weights(count: int, draws: int, probes: int) -> np.ndarray:
    """Squared entries of directions uniform on the sphere, [draws, probes, count]."""
    squares = np.random.default_rng(0).chisquare(1, (draws, probes, count))
    return squares / squares.sum(-1, keepdims=True)


def logs_of(squares: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """log sum_i squares_i exp(exponents_i), for squares [..., n] and exponents [n, S]."""
    top = exponents.max(0)
    return np.asarray(np.log(squares @ np.exp(exponents - top)) + top)


@pytest.mark.parametrize("strength", [-1.0, 0.5])
def test_the_identity_that_ends_rest_on(strength: float) -> None:
    values = np.array([0.9, 0.2, 0.4])
    forms = weights(3, 200_000, 1)[:, 0] @ np.exp(2 * strength * values)
    assert np.mean(forms ** (-3 / 2)) == pytest.approx(math.exp(-strength * values.sum()), rel=0.01)


@pytest.mark.parametrize("kind", SPECTRA)
def test_ends_hold_at_all_numbers_of_probes_at_once(kind: str) -> None:
    values, failure = SPECTRA[kind], 0.1
    strengths = Strengths.for_width(len(values), failure, 0.04)
    directions, missed = weights(len(values), DRAWS, PROBES), 0
    logs = logs_of(directions, -2 * np.outer(values, strengths.values))
    for draw in logs:
        lows = [least_mean(draw[:number], strengths, len(values), failure) for number in range(1, PROBES + 1)]
        missed += max(lows) > values.mean() + 1e-9
    assert missed <= binom.ppf(0.9999, DRAWS, failure)


def test_the_bound_is_nearly_met() -> None:
    """What is missed is within the twentieth of the failure that Markov's inequality and the mixture take."""
    values, failure = SPECTRA["uniform"], 0.3
    strengths = Strengths.for_width(len(values), failure, 0.04)
    logs = logs_of(weights(len(values), 1000, 1), -2 * np.outer(values, strengths.values))
    missed = sum(least_mean(draw, strengths, len(values), failure) > values.mean() for draw in logs)
    assert missed > 0.05 * failure * len(logs)


@pytest.mark.parametrize("num_probes", [1, 3])
def test_the_end_is_the_root_of_the_mixture(num_probes: int) -> None:
    values, failure = SPECTRA["uniform"], 0.01
    strengths = Strengths.for_width(len(values), failure, 0.04)
    logs = logs_of(weights(len(values), 20, num_probes), -2 * np.outer(values, strengths.values))
    for draw in logs:
        heights = -len(values) / 2 * draw.sum(0)

        def mixture(mean: float, heights: np.ndarray = heights) -> float:
            exponents = heights - num_probes * len(values) * strengths.values * mean
            return float(logsumexp(exponents, b=strengths.weights)) + math.log(failure)

        root = brentq(mixture, -1.0, 2.0, xtol=1e-14)
        assert least_mean(draw, strengths, len(values), failure) == pytest.approx(max(0.0, root), rel=1e-9, abs=1e-12)
    assert least_mean(np.zeros((0, len(strengths.values))), strengths, len(values), failure) == 0


@pytest.mark.parametrize(("kind", "num_probes", "most"), [("uniform", 2, 1.15), ("mostly revealed", 8, 1.3)])
def test_nearly_as_narrow_as_if_the_variance_were_known(kind: str, num_probes: int, most: float) -> None:
    values, failure = SPECTRA[kind], 1e-5
    strengths = Strengths.for_width(len(values), failure, 0.04)
    logs = np.log(np.exp(-2 * np.outer(strengths.values, values)).mean(1))[None].repeat(num_probes, 0)
    reach = 2 * math.sqrt(math.log(1 / failure) * values.var() / (num_probes * len(values)))
    assert values.mean() - least_mean(logs, strengths, len(values), failure) <= most * reach


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [0, 1, 3, 10, 40])
@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.1, 10.0])
def test_forms_have_upper_ends(dtype: torch.dtype, depth: int, eps: float) -> None:
    rng = np.random.default_rng(1)
    values = np.append(10.0 ** rng.uniform(-6, 0, 37), np.zeros(3))
    matrix = torch.from_numpy(random_spectrum_matrix(values, rng)).to(dtype)
    start = torch.from_numpy(rng.standard_normal((1, 40))).to(dtype)
    (space,) = lanczos(MatrixOperator(matrix[None], psd=True), start, lambda _, __: False, depth)
    strengths = np.array([0.01, 0.3, 1.0, 3.0, 10.0])
    rising, falling = Quadrature([space.tridiagonal]).exponentials(eps, strengths)
    exact, vectors = torch.linalg.eigh(matrix.double())
    left = eps / (exact.clamp_min(0).numpy() + eps)
    direction = (vectors.mT @ start[0].double()).numpy() ** 2
    direction /= direction.sum()
    truth = np.log(np.exp(2 * np.outer(strengths, left - 1)) @ direction)
    assert (rising[0] >= truth - 1e-12).all()
    assert (rising <= 0).all()
    shrunk = np.log(np.exp(-2 * np.outer(strengths, left)) @ direction)
    assert (falling[0] >= shrunk - 1e-12).all()
    assert (falling <= 0).all()
    if depth == 40 and dtype == torch.float64 and eps >= 0.1:
        assert np.allclose(rising[0], truth, atol=1e-9)
        assert np.allclose(falling[0, :3], shrunk[:3], atol=1e-9)


def test_a_value_that_rounding_left_below_zero_says_nothing_and_overflows_nothing() -> None:
    diagonal, off_diagonal = np.array([-4e-13, 1.0]), np.array([1e-14, 0.0])
    tridiagonal = Tridiagonal(diagonal, off_diagonal, 2, 1.0, float(np.finfo(np.float64).eps))
    rising, falling = Quadrature([tridiagonal]).exponentials(1e-12, np.array([1.0, 1e4]))
    assert np.isfinite(rising).all()
    assert np.isfinite(falling).all()
    assert rising[0, 1] == 0


def test_nothing_is_known_without_a_product() -> None:
    (space,) = lanczos(MatrixOperator(torch.eye(5)[None], psd=True), torch.ones(1, 5), lambda _, __: False, 0)
    strengths = Strengths.for_width(5, 0.01, 0.04)
    assert share_ends_by_exponentials(Quadrature([space.tridiagonal]), 1.0, strengths, 5, 0.01) == (0.0, 1.0)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_rounding_is_inside(sign: float) -> None:
    """The iteration belongs to an operator as far off as rounding may be; the ends are those of the right one."""
    error, eps, strengths = 1e-3, 0.01, np.array([0.1, 0.5, 2.0])
    values = np.linspace(error, 0.05, 8)
    operator = MatrixOperator(torch.diag(torch.from_numpy(values + sign * error))[None], psd=True)
    start = torch.ones(1, 8, dtype=torch.float64)
    (space,) = lanczos(operator, start, lambda _, __: False, 8)
    exact = space.tridiagonal
    moved = replace(exact, rounding=exact.rounding * error / exact.slack())
    left, direction = eps / (values + eps), np.full(8, 1 / 8)
    truths = [np.log(np.exp(2 * np.outer(strengths, left - 1)) @ direction),
              np.log(np.exp(-2 * np.outer(strengths, left)) @ direction)]  # fmt: skip
    for truth, told in zip(truths, Quadrature([moved]).exponentials(eps, strengths), strict=True):
        assert (told[0] >= truth).all()
    # Without room for it, one of them isn't an end.
    plain = Quadrature([exact]).exponentials(eps, strengths)[0 if sign > 0 else 1]
    assert (plain[0] < truths[0 if sign > 0 else 1]).all()
