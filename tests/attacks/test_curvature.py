"""What a search keeps of the curvature that it met: made when it pays, right at another shift, bounded in memory."""

from __future__ import annotations

import pytest
import torch

from riskaudit.attacks.optimise import curvature as module
from riskaudit.attacks.optimise.curvature import EarlierCurvature
from riskaudit.linalg import GramOperator, MatrixOperator
from riskaudit.priors import GaussianPrior, WhitenedOperator
from riskaudit.priors.gaussian import bind_gaussians

DIMENSION = 20


def whitened(gram: GramOperator) -> WhitenedOperator:
    """With a prior that tells directions and samples apart."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(DIMENSION, 4, generator=generator, dtype=torch.float64))[0]
    variances = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    gaussians = [
        GaussianPrior(torch.zeros(DIMENSION).double(), directions, scale * variances, 0.3, (DIMENSION,))
        for scale in range(1, gram.num_samples + 1)
    ]
    return WhitenedOperator(gram, bind_gaussians(gaussians, torch.zeros(1, dtype=torch.float64)))


def operator(count: int = 3) -> WhitenedOperator:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(count, 30, DIMENSION, generator=generator, dtype=torch.float64)
    return whitened(GramOperator(MatrixOperator(factors)))


def test_solves_with_the_shift_of_the_step() -> None:
    earlier, gram = EarlierCurvature(5, DIMENSION), operator()
    rows = [0, 2, 4]
    earlier.pay(rows, torch.tensor([100, 100, 100]))
    earlier.refresh(rows, gram)
    shift, rhs = torch.tensor([1.0, 1e-3, 10.0], dtype=torch.float64), torch.ones(3, DIMENSION, dtype=torch.float64)
    precondition = earlier.preconditioner(rows, shift)
    assert precondition is not None
    solved = precondition(rhs)
    assert torch.allclose(gram.matvec(solved) + shift[:, None] * solved, rhs, rtol=1e-8)
    # In another order, with fewer samples: each has its own. A factor of a similar shift is near enough.
    swapped = earlier.preconditioner([4, 0], torch.tensor([11.0, 1000.0], dtype=torch.float64))
    assert swapped is not None
    assert torch.equal(swapped(rhs[:2])[0], solved[2])
    assert torch.allclose(swapped(rhs[:2])[1], rhs[1] / 1000, rtol=0.1)


def test_a_matrix_is_made_once_products_have_cost_as_much() -> None:
    earlier, gram = EarlierCurvature(3, DIMENSION), operator()
    shift, rhs = torch.ones(3, dtype=torch.float64), torch.ones(3, DIMENSION, dtype=torch.float64)
    earlier.pay([0, 1, 2], torch.tensor([4, 5, 0]))
    earlier.refresh([0, 1, 2], gram)
    precondition = earlier.preconditioner([0, 1, 2], shift)
    assert precondition is not None
    changed = (precondition(rhs) != rhs).any(-1)
    assert changed.tolist() == [False, True, False]


def test_memory_is_bounded_and_a_sample_that_left_frees_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 2 * 24 * DIMENSION**2)
    earlier, gram = EarlierCurvature(3, DIMENSION), operator()
    rhs = torch.ones(3, DIMENSION, dtype=torch.float64)
    earlier.pay([0, 1, 2], torch.full((3,), 100))
    earlier.refresh([0, 1, 2], gram)
    precondition = earlier.preconditioner([0, 1, 2], torch.ones(3, dtype=torch.float64))
    assert precondition is not None
    assert (precondition(rhs) != rhs).any(-1).tolist() == [True, True, False]
    earlier.refresh([1, 2], gram.select([1, 2]))
    precondition = earlier.preconditioner([1, 2], torch.ones(2, dtype=torch.float64))
    assert precondition is not None
    assert (precondition(rhs[:2]) != rhs[:2]).any(-1).all()


def test_a_singular_matrix_is_no_obstacle() -> None:
    factors = torch.zeros(1, 30, DIMENSION, dtype=torch.float64)
    factors[0, 0, 0] = 1e6
    gram, rhs = whitened(GramOperator(MatrixOperator(factors))), torch.ones(1, DIMENSION, dtype=torch.float64)
    earlier = EarlierCurvature(1, DIMENSION)
    earlier.pay([0], torch.tensor([100]))
    earlier.refresh([0], gram)
    precondition = earlier.preconditioner([0], torch.zeros(1, dtype=torch.float64))
    assert precondition is not None
    assert bool(torch.isfinite(precondition(rhs)).all())


@pytest.mark.parametrize("entry", [0.0, float("nan")])
def test_a_curvature_that_says_nothing_is_left_out(entry: float) -> None:
    gram = whitened(GramOperator(MatrixOperator(torch.full((1, 30, DIMENSION), entry, dtype=torch.float64))))
    earlier = EarlierCurvature(1, DIMENSION)
    earlier.pay([0], torch.tensor([100]))
    earlier.refresh([0], gram)
    assert earlier.preconditioner([0], torch.zeros(1, dtype=torch.float64)) is None
