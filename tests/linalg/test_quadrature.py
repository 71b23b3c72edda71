"""Brackets of quadratic forms hold the dense value, for any spectrum, and close as products are made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import SPECTRA, stack, starts
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Array, random_spectrum_matrix

from riskaudit.linalg import InverseForms, MatrixOperator, Quadrature, inverse_forms, lanczos
from riskaudit.linalg.krylov import tridiagonal

KINDS = {**SPECTRA, "ten-decades": lambda rng, n: 10.0 ** rng.uniform(-10, 0, n)}


def never(_: int, __: object) -> bool:
    return False


def dense_forms(H: Array, b: Array, shifts: Array) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(H)
    weights, values = (vectors.T @ b) ** 2, np.maximum(values, 0)
    return tuple(np.array([np.sum(weights / (values + shift) ** q) for shift in shifts]) for q in (1, 2))


def assert_holds(forms: InverseForms, H: Array, b: Array, shifts: Array, rounding: float = 1e-13) -> None:
    first, second = dense_forms(H, b, shifts)
    assert (forms.first_low <= first * (1 + rounding)).all()
    assert (forms.first_high >= first * (1 - rounding)).all()
    assert (forms.second_low <= second * (1 + rounding)).all()
    assert (forms.second_high >= second * (1 - rounding)).all()


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_brackets_hold_after_any_number_of_products(kind: str, dtype: torch.dtype, n: int) -> None:
    rng = np.random.default_rng(0)
    spectra = [KINDS[kind](rng, n) + 1e-9 for _ in range(3)]
    operator = MatrixOperator(
        stack([random_spectrum_matrix(values, rng) for values in spectra]).matrices.to(dtype), psd=True
    )
    start = (5 * starts(3, n)).to(dtype)
    for products in range(min(n, 12) + 1):
        spaces = lanczos(operator, start, never, products)
        for values, matrix, b, space in zip(spectra, operator.matrices, start, spaces, strict=True):
            shifts = values.max() * 10.0 ** np.arange(-10, 2)
            H = matrix.double().numpy()
            H = (H + H.T) / 2
            # The float32 matrix has another smallest eigenvalue than it was made with.
            known = max(0.0, float(np.linalg.eigvalsh(H)[0]))
            for least in (0.0, 0.5 * known, known):
                assert_holds(inverse_forms(space.tridiagonal, shifts, least), H, b.double().numpy(), shifts)


@settings(max_examples=100, deadline=None)
@given(
    logarithms=st.lists(st.one_of(st.just(float("-inf")), st.floats(-12, 6)), min_size=1, max_size=12),
    log_shift=st.floats(-12, 6),
    seed=st.integers(0, 2**16),
    products=st.integers(0, 12),
)
def test_brackets_hold_for_any_spectrum(logarithms: list[float], log_shift: float, seed: int, products: int) -> None:
    values, rng = 10.0 ** np.array(logarithms), np.random.default_rng(seed)
    H = random_spectrum_matrix(values, rng)
    b = rng.standard_normal(len(values))
    (space,) = lanczos(stack([H]), torch.from_numpy(b[None]), never, products)
    shifts = np.array([10.0**log_shift])
    if shifts[0] > 1e-13 * values.max():
        # Below that the dense reference itself is lost in rounding.
        rounding = 1e-12 * max(1.0, values.max() / shifts[0])
        assert_holds(inverse_forms(space.tridiagonal, shifts), H, b, shifts, rounding)


@pytest.mark.parametrize("kind", ["uniform", "geometric", "one-large"])
def test_brackets_close(kind: str) -> None:
    rng = np.random.default_rng(1)
    H = random_spectrum_matrix(KINDS[kind](rng, 30), rng)
    shifts = np.array([1e-3, 1e-1]) * np.linalg.eigvalsh(H)[-1]
    widths = []
    for products in range(1, 31):
        (space,) = lanczos(stack([H]), starts(1, 30), never, products)
        forms = inverse_forms(space.tridiagonal, shifts)
        widths.append(
            [(forms.first_high / forms.first_low).max() - 1, (forms.second_high / forms.second_low).max() - 1]
        )
    widths = np.array(widths)
    assert (np.diff(widths, axis=0) <= 1e-9 * (1 + widths[:-1])).all()
    assert (widths[-1] < 1e-9).all()
    assert (widths[0] > 0.1).all()


def test_a_known_lower_end_narrows_the_bracket() -> None:
    rng = np.random.default_rng(2)
    values = np.linspace(0.5, 1, 40)
    H = random_spectrum_matrix(values, rng)
    (space,) = lanczos(stack([H]), starts(1, 40), never, 4)
    blind, told = (inverse_forms(space.tridiagonal, 1e-3, least) for least in (0.0, 0.5))
    assert told.first_high - told.first_low < 0.01 * (blind.first_high - blind.first_low)
    assert told.second_high - told.second_low < 0.001 * (blind.second_high - blind.second_low)
    assert_holds(told, H, starts(1, 40)[0].numpy(), np.array([1e-3]))


def test_without_a_shift_only_a_lower_end_is_known() -> None:
    rng = np.random.default_rng(3)
    H = random_spectrum_matrix(rng.uniform(0.5, 1, 20), rng)
    (space,) = lanczos(stack([H]), starts(1, 20), never, 6)
    forms = inverse_forms(space.tridiagonal, 0.0)
    assert (forms.first_high, forms.second_high) == (math.inf, math.inf)
    assert forms.first_low.shape == ()
    assert_holds(forms, H, starts(1, 20)[0].numpy(), np.array([0.0]))


def test_invariant_space_needs_no_shift_unless_singular() -> None:
    rng = np.random.default_rng(4)
    regular = random_spectrum_matrix(np.array([3.0, 3, 1, 1, 2, 2]), rng)
    singular = random_spectrum_matrix(np.array([3.0, 3, 0, 0, 2, 2]), rng)
    start = starts(2, 6)
    spaces = lanczos(stack([regular, singular]), start, never, 6)
    assert [space.tridiagonal.num_products for space in spaces] == [3, 3]
    forms = inverse_forms(spaces[0].tridiagonal, 0.0)
    first, second = dense_forms(regular, start[0].numpy(), np.array([0.0]))
    for low, high, truth in ((forms.first_low, forms.first_high, first), (forms.second_low, forms.second_high, second)):
        assert low == pytest.approx(truth[0], rel=1e-12)
        assert high == pytest.approx(truth[0], rel=1e-12)
    assert inverse_forms(spaces[1].tridiagonal, 0.0).first_high == math.inf


def test_shift_within_rounding_has_no_upper_end() -> None:
    """In float32 a product tells nothing of eigenvalues below about 1e-7 l_1."""
    rng = np.random.default_rng(5)
    H = random_spectrum_matrix(rng.uniform(0.5, 1, 20), rng)
    for dtype, resolved in ((torch.float32, False), (torch.float64, True)):
        (space,) = lanczos(MatrixOperator(stack([H]).matrices.to(dtype), psd=True), starts(1, 20).to(dtype), never, 6)
        assert bool(np.isfinite(inverse_forms(space.tridiagonal, 1e-7).first_high)) is resolved
        # Rounding follows the largest eigenvalue of H, whether or not this start met it.
        assert inverse_forms(space.tridiagonal, 1e-7, largest=1e12).first_high == math.inf


def test_zero_vector_has_forms_of_zero() -> None:
    (space,) = lanczos(stack([np.eye(4)]), torch.zeros(1, 4, dtype=torch.float64), never, 4)
    for shift in (0.0, 1.0):
        assert inverse_forms(space.tridiagonal, shift) == (0, 0, 0, 0)


def test_shifts_of_any_shape_and_probes_of_different_length() -> None:
    rng = np.random.default_rng(6)
    H = random_spectrum_matrix(rng.uniform(0, 1, 20), rng)
    spaces = lanczos(stack([H] * 3), starts(3, 20), lambda i, s: s.tridiagonal.num_products == 3 * i + 2, 20)
    shifts = np.array([[0.1, 0.2], [0.3, 0.4]])
    together = Quadrature([space.tridiagonal for space in spaces]).inverse_forms(shifts)
    for probe, space in enumerate(spaces):
        for end, own in zip(together, inverse_forms(space.tridiagonal, shifts), strict=True):
            assert end.shape == (2, 2, 3)
            np.testing.assert_allclose(end[..., probe], own, rtol=1e-13)
        single = inverse_forms(space.tridiagonal, 0.3)
        assert single.second_high == pytest.approx(together.second_high[1, 0, probe], rel=1e-13)


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_shares_hold_at_any_eps(eps: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(7)
    H = random_spectrum_matrix(KINDS["ten-decades"](rng, 30), rng)
    matrices = stack([H]).matrices.to(dtype)
    H = matrices[0].double().numpy()
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    values = np.maximum(values, 0)
    for products in (1, 4, 12, 30):
        start = starts(1, 30).to(dtype)
        (space,) = lanczos(MatrixOperator(matrices, psd=True), start, never, products)
        truth = np.sum((vectors.T @ start[0].double().numpy()) ** 2 * values / (values + eps))
        low, high = Quadrature([space.tridiagonal]).shares(eps)
        assert low[0] <= truth * (1 + 1e-13)
        assert high[0] >= truth * (1 - 1e-13)
        if products == 30 and eps >= 1e-3:
            assert high[0] - low[0] <= (0.05 if dtype == torch.float32 else 1e-9) * truth


def test_rules_of_one_iteration_are_computed_once(monkeypatch) -> None:
    """A sample's intervals are looked at after every few products, with all its probes so far."""
    operator = stack([random_spectrum_matrix(np.geomspace(1e-6, 1, 60), np.random.default_rng(0))])
    (space,) = lanczos(operator, starts(1, 60), lambda _, __: False, 10)
    decompositions, decompose = [], tridiagonal.eigh_tridiagonal
    monkeypatch.setattr(tridiagonal, "eigh_tridiagonal", lambda *args: decompositions.append(0) or decompose(*args))
    for _ in range(5):
        Quadrature([space.tridiagonal.as_if_double()])
        Quadrature([space.tridiagonal.as_if_double().as_if_exhausted()])
    # T's own is known from the iteration, or is one more.
    assert len(decompositions) <= 2


def test_an_iteration_as_if_its_space_were_invariant_has_no_residuals() -> None:
    operator = stack([random_spectrum_matrix(np.geomspace(1e-6, 1, 60), np.random.default_rng(0))])
    (space,) = lanczos(operator, starts(1, 60), lambda _, __: False, 10)
    exhausted = space.tridiagonal.as_if_exhausted()
    assert exhausted.exhausted
    assert not exhausted.ritz().residuals.any()
    assert space.tridiagonal.ritz().residuals.any()
    assert space.tridiagonal.leading(0).as_if_exhausted().num_products == 0
