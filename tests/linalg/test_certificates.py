"""Ends of the spectrum: missed as rarely as claimed, and nearer than the bound for the worst spectrum."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import SPECTRA, stack, starts
from oracles import random_spectrum_matrix
from scipy.stats import binom

from riskaudit.linalg import Lanczos, Tridiagonal, lanczos, lower_end, upper_end
from riskaudit.linalg.krylov import certificates
from riskaudit.linalg.krylov.certificates import is_at_most, log_overlap_quantile

COUNT, N = 400, 50
KINDS = {
    **SPECTRA,
    "power-law": lambda rng, n: np.arange(1.0, n + 1) ** -2,
    "pair-at-the-top": lambda rng, n: np.concatenate([[1.0, 1 - 1e-5], rng.uniform(0, 0.9, n - 2)]),
    "away-from-zero": lambda rng, n: np.concatenate([[1.0], rng.uniform(4, 5, n - 1)]),
}
DECAYING = ["geometric", "one-large", "power-law"]


@cache
def problems(kind: str, products: int) -> tuple[list[Tridiagonal], np.ndarray, np.ndarray]:
    """T after so many products, and the true l_1 and l_n, of many random matrices."""
    rng = np.random.default_rng(3)
    spectra = [KINDS[kind](rng, N) for _ in range(COUNT)]
    operator = stack([random_spectrum_matrix(values, rng) for values in spectra])
    spaces = lanczos(operator, starts(COUNT, N, seed=4), lambda _, __: False, products)
    largest, least = (np.array([pick(values) for values in spectra]) for pick in (np.max, np.min))
    return [space.tridiagonal for space in spaces], largest, least


def worst_case_end(tridiagonal: Tridiagonal, failure: float) -> float:
    """Kuczynski and Wozniakowski 1992, theorem 4.2."""
    root = math.log(1.648 * math.sqrt(tridiagonal.dimension) / failure) / (2 * tridiagonal.num_products - 1)
    return tridiagonal.largest / (1 - root**2) if root < 1 else math.inf


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", [3, 6, 12])
def test_ends_are_missed_as_rarely_as_claimed(kind: str, products: int) -> None:
    tridiagonals, largest, least = problems(kind, products)
    high = np.array([upper_end(each, 0.05) for each in tridiagonals])
    low = np.array([lower_end(each, 0.05) for each in tridiagonals])
    most = binom.ppf(0.9999, COUNT, 0.05)
    assert np.sum(high < largest) <= most
    assert np.sum(low > least) <= most
    assert np.isfinite(high).all()
    assert (low >= 0).all()


def test_share_of_misses_comes_near_the_claim() -> None:
    """One dominant eigenvalue attains the bound, so a certificate twice as bold would be caught."""
    tridiagonals, largest, _ = problems("power-law", 6)
    misses = [upper_end(each, 0.05) < top for each, top in zip(tridiagonals, largest, strict=True)]
    assert np.sum(misses) >= binom.ppf(0.0001, COUNT, 0.05)
    tridiagonals, _, least = problems("away-from-zero", 6)
    misses = [lower_end(each, 0.05) > end for each, end in zip(tridiagonals, least, strict=True)]
    assert np.sum(misses) >= binom.ppf(0.0001, COUNT, 0.05)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", [1, 3, 6, 12])
@pytest.mark.parametrize("failure", [0.05, 1e-4, 1e-9])
def test_never_looser_than_the_worst_case(kind: str, products: int, failure: float) -> None:
    for each in problems(kind, products)[0]:
        assert upper_end(each, failure) <= worst_case_end(each, failure) * (1 + 1e-12)


@pytest.mark.parametrize("kind", DECAYING)
def test_far_tighter_where_the_spectrum_decays(kind: str) -> None:
    excesses, worst = [], []
    for each, top in zip(*problems(kind, 12)[:2], strict=True):
        excesses.append(upper_end(each, 1e-4) / top - 1)
        worst.append(worst_case_end(each, 1e-4) / top - 1)
    assert np.median(worst) > 0.3
    assert np.median(excesses) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_monotone_in_products_and_failure(kind: str) -> None:
    for products in (3, 6):
        for fewer, more in zip(problems(kind, products)[0][:50], problems(kind, 2 * products)[0][:50], strict=True):
            assert upper_end(more, 1e-3) <= upper_end(fewer, 1e-3) * (1 + 1e-12)
            assert lower_end(more, 1e-3) >= lower_end(fewer, 1e-3) * (1 - 1e-12)
            ends = [upper_end(fewer, failure) for failure in (1e-12, 1e-6, 1e-3, 0.1)]
            assert ends == sorted(ends, reverse=True)
            ends = [lower_end(fewer, failure) for failure in (1e-12, 1e-6, 1e-3, 0.1)]
            assert ends == sorted(ends)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", [1, 6])
def test_one_look_tells_on_which_side_of_a_number_the_end_lies(kind: str, products: int) -> None:
    for each in problems(kind, products)[0][:50]:
        end = upper_end(each, 1e-4)
        distance = end - each.largest
        assert is_at_most(each, 1e-4, end + 1e-6 * distance)
        assert not is_at_most(each, 1e-4, end - 1e-6 * distance)
        assert not is_at_most(each, 1e-4, each.largest)


def test_an_iteration_looks_at_its_kernel_once_per_product(monkeypatch) -> None:
    """Searching for the end after every product of every sample took a sixth of a lenet's audit."""
    rng, looks = np.random.default_rng(11), []
    kernel = certificates._log_kernel
    monkeypatch.setattr(certificates, "_log_kernel", lambda *args: looks.append(0) or kernel(*args))
    values = np.concatenate([[1.0, 0.6], rng.uniform(0, 0.5, 78)])
    solver = Lanczos(1e-3, 60, 1e-6, precision=1e-3)
    (space,) = solver.run(stack([random_spectrum_matrix(values, rng)]), starts(1, 80))
    assert 5 < space.tridiagonal.num_products < 60
    assert 1 <= len(looks) <= space.tridiagonal.num_products
    assert upper_end(space.tridiagonal, 1e-6) <= 1.001 * space.tridiagonal.largest


def test_invariant_space_gives_both_ends() -> None:
    rng = np.random.default_rng(5)
    values = np.array([7.0, 5, 5, 2, 2, 2])
    (space,) = lanczos(stack([random_spectrum_matrix(values, rng)]), starts(1, 6), lambda _, __: False, 6)
    assert space.tridiagonal.num_products == 3
    for failure in (0.5, 1e-300):
        assert 7 <= upper_end(space.tridiagonal, failure) <= 7 * (1 + 1e-13)
        assert 2 * (1 - 1e-13) <= lower_end(space.tridiagonal, failure) <= 2
        assert is_at_most(space.tridiagonal, failure, 7 * (1 + 1e-13))


def test_nothing_is_known_without_a_product() -> None:
    start = starts(2, 6)
    start[1] = 0
    for space in lanczos(stack([np.eye(6)] * 2), start, lambda _, __: False, 0):
        assert upper_end(space.tridiagonal, 0.1) == math.inf
        assert not is_at_most(space.tridiagonal, 0.1, 1e300)
        assert lower_end(space.tridiagonal, 0.1) == 0


@pytest.mark.parametrize("factor", [1e-150, 1e150])
def test_scale_does_not_matter(factor: float) -> None:
    tridiagonal = problems("uniform", 6)[0][0]
    scaled = Tridiagonal(
        factor * tridiagonal.diagonal, factor * tridiagonal.off_diagonal, N, tridiagonal.start_norm, 2.0**-52
    )
    assert upper_end(scaled, 1e-6) / factor == pytest.approx(upper_end(tridiagonal, 1e-6), rel=1e-8)


def test_many_products_and_a_tiny_failure_do_not_overflow() -> None:
    rng = np.random.default_rng(6)
    H = random_spectrum_matrix(np.geomspace(1e-14, 1, 400), rng)
    (space,) = lanczos(stack([H]), starts(1, 400), lambda _, __: False, 200)
    assert 1 <= upper_end(space.tridiagonal, 1e-300) < 1 + 1e-6
    assert lower_end(space.tridiagonal, 1e-300) <= 1e-14


@pytest.mark.parametrize("dimension", [1, 2, 3, 10, 1000])
def test_overlap_quantile(dimension: int) -> None:
    directions = torch.randn(200_000, min(dimension, 10), generator=torch.Generator().manual_seed(0)).double()
    squares = directions.square()
    rest = torch.zeros(len(squares), dtype=torch.float64)
    if dimension > 10:
        rest = torch.from_numpy(np.random.default_rng(0).chisquare(dimension - 10, len(squares)))
    overlaps = squares[:, 0] / (squares.sum(-1) + rest)
    for failure in (0.5, 0.05, 0.01):
        share = float((overlaps.log() < log_overlap_quantile(dimension, failure) - 1e-6).double().mean())
        assert share == (0 if dimension == 1 else pytest.approx(failure, rel=0.1))
    # The series for tiny probabilities meets the distribution itself, and goes on below what underflows.
    if dimension > 1:
        slope = log_overlap_quantile(dimension, 1.001e-8) - log_overlap_quantile(dimension, 0.999e-8)
        assert slope == pytest.approx(2 * math.log(1.001 / 0.999), rel=1e-3)
        further = log_overlap_quantile(dimension, 1e-9) - log_overlap_quantile(dimension, 1e-300)
        assert further == pytest.approx(2 * 291 * math.log(10), rel=1e-9)
