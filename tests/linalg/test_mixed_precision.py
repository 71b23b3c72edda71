"""Products in single precision: no further from the matrix than is allowed for, and exact where they are in double."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts.linear_operator import normal
from oracles import random_spectrum_matrix
from torch import Tensor

from riskaudit.linalg import MatrixOperator, MeasuredRounding, MixedPrecisionOperator, Quadrature, lanczos
from riskaudit.linalg.operators import identity_columns

DIMENSION, SAMPLES = 60, 8
EPS = torch.finfo(torch.float32).eps


def matrices(ratio: float = 1.3) -> Tensor:
    """Of eigenvalues that fall geometrically, from 100 on."""
    rng = np.random.default_rng(0)
    spectrum = 100 * ratio ** -np.arange(DIMENSION)
    return torch.from_numpy(np.stack([random_spectrum_matrix(spectrum, rng) for _ in range(SAMPLES)]))


def scaled(exact: Tensor) -> Tensor:
    """As the derivative of a loss that is a difference of nearly equal numbers."""
    return exact * (1 + 300 * EPS)


def blurred(exact: Tensor) -> Tensor:
    """As products whose sums are rounded at every step."""
    noise = normal(*exact.shape, seed=7)
    return exact + 3 * EPS * 100 * (noise + noise.mT) / (2 * math.sqrt(2 * DIMENSION))


def misled(exact: Tensor) -> Tensor:
    """Along one direction that has nothing to do with the matrix."""
    u = normal(SAMPLES, DIMENSION, 1, seed=8)
    u = u / u.norm(dim=1, keepdim=True)
    return exact + 50 * EPS * 100 * u @ u.mT


def operator_of(
    exact: Tensor, rounded: Tensor, resolved: bool = True
) -> tuple[MixedPrecisionOperator, MeasuredRounding]:
    double, single = MatrixOperator(exact, psd=True), MatrixOperator(rounded.float(), psd=True)
    measured = MeasuredRounding.of(
        double, single, normal(SAMPLES, DIMENSION, seed=1), normal(SAMPLES, DIMENSION, seed=2)
    )
    return MixedPrecisionOperator(double, single, measured, [resolved] * SAMPLES), measured


@pytest.mark.parametrize("rounding", [torch.Tensor.clone, scaled, blurred, misled])
@pytest.mark.parametrize("ratio", [1.05, 1.3])
def test_no_further_from_the_matrix_than_is_allowed_for(rounding, ratio) -> None:
    exact = matrices(ratio)
    operator, measured = operator_of(exact, rounding(exact))
    error = torch.linalg.matrix_norm(operator.matmat(identity_columns(operator)) - exact, 2)
    allowed = torch.tensor([measured.slack(index) for index in range(SAMPLES)])
    assert bool((error <= allowed).all())
    # Nor is so much allowed for that nothing is resolved.
    assert float((allowed / error).median()) < 20


def test_what_is_lost_where_the_matrix_is_large_is_known() -> None:
    exact = matrices(3.0)
    operator, _ = operator_of(exact, scaled(exact))
    error = torch.linalg.matrix_norm(operator.matmat(identity_columns(operator)) - exact, 2)
    plain = torch.linalg.matrix_norm(scaled(exact).float().double() - exact, 2)
    assert bool((error < plain / 5).all())


def test_an_operator_says_how_its_products_are_rounded() -> None:
    exact = matrices()
    operator, measured = operator_of(exact, blurred(exact))
    (space,) = lanczos(operator.select([3]), normal(1, DIMENSION), lambda _, __: False, 20)
    assert space.tridiagonal.slack() == pytest.approx(measured.slack(3), rel=1e-2)
    basis = space.basis.numpy()
    assert np.abs(basis @ basis.T - np.eye(len(basis))).max() < 1e-13


@pytest.mark.parametrize("rounding", [scaled, blurred])
def test_brackets_of_forms_contain_those_of_the_matrix(rounding) -> None:
    """b^T H (H + eps)^-1 b at an eps that single precision hardly resolves, where H~ alone is far off."""
    exact = matrices()
    operator, measured = operator_of(exact, rounding(exact))
    starts = normal(SAMPLES, DIMENSION, seed=3)
    for index, space in enumerate(lanczos(operator, starts, lambda _, __: False, 30)):
        eps = 5 * measured.slack(index)
        lows, highs = Quadrature([space.tridiagonal]).shares(eps)
        shifted = exact[index] + eps * torch.eye(DIMENSION, dtype=torch.float64)
        share = float(starts[index] @ exact[index] @ torch.linalg.solve(shifted, starts[index]))
        assert lows[0] <= share <= highs[0]
        assert highs[0] - lows[0] < 0.5 * share


def test_maps_in_double_precision_have_its_very_products() -> None:
    exact = matrices()
    operator, measured = operator_of(exact, scaled(exact))
    resolved = [index % 3 == 0 for index in range(SAMPLES)]
    mixed = MixedPrecisionOperator(*operator._sources, measured, resolved)
    vectors = normal(SAMPLES, DIMENSION, 2, seed=4)
    product, single, double = (each.matmat(vectors) for each in (mixed, operator, MatrixOperator(exact)))
    for index, is_single in enumerate(resolved):
        torch.testing.assert_close(product[index], (single if is_single else double)[index], rtol=1e-13, atol=1e-12)
        assert float((product[index] - double[index]).norm()) > 1e-7 or not is_single
        assert mixed.rounding[index] == (measured.relative[index] if is_single else torch.finfo(torch.float64).eps)
    assert mixed.in_single == resolved
    chosen = [5, 3, 3, 0]
    torch.testing.assert_close(mixed.select([5, 3, 0]).select([0, 1, 1, 2]).matmat(vectors[chosen]), product[chosen])


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_vectors_may_be_of_any_length(scale) -> None:
    exact = matrices()
    operator, _ = operator_of(exact, exact)
    vectors = normal(SAMPLES, DIMENSION, 1, seed=5)
    torch.testing.assert_close(operator.matmat(scale * vectors) / scale, operator.matmat(vectors), rtol=1e-5, atol=1e-4)


def test_products_that_single_precision_cannot_hold_are_not_trusted() -> None:
    exact = 1e40 * matrices()
    _, measured = operator_of(exact, exact)
    assert not any(measured.slack(index) < 1e30 for index in range(SAMPLES))
