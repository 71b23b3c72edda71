"""How many products l_1 takes on real images and the networks of the papers; the figures are printed (-s)."""

from __future__ import annotations

import cases
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import ARCHITECTURES
from riskaudit.jacobian import GenericJacobian
from riskaudit.linalg import GramOperator, KrylovSpace, LinearOperator, Power, lanczos
from riskaudit.release import Batch, PerSampleRelease


def normal(operator: LinearOperator, seed: int) -> Tensor:
    shape = (operator.num_samples, operator.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(operator.dtype)


def spaces_of(operator: LinearOperator, seed: int, num_products: int) -> list[KrylovSpace]:
    return lanczos(operator, normal(operator, seed), lambda _, __: False, num_products)


def largest_of(spaces: list[KrylovSpace]) -> Tensor:
    return torch.tensor([space.tridiagonal.largest for space in spaces], dtype=torch.float64)


def tight_reference(operator: LinearOperator, num_products: int) -> Tensor:
    """l_1 from a start of its own, certified: an eigenvalue lies within the residual of a Ritz value."""
    spaces = spaces_of(operator, 99, num_products)
    for space in spaces:
        pairs = space.tridiagonal.ritz()
        assert pairs.residuals[-1] <= 1e-8 * pairs.values[-1]
    return largest_of(spaces)


def relative_errors(operator: LinearOperator, reference: Tensor, products: int, power: int) -> tuple[Tensor, Tensor]:
    """Of l_1, [B], after so many products of each method."""
    by_lanczos = largest_of(spaces_of(operator, 0, products))
    # A tolerance of 0 makes power iteration use all its products.
    by_power = Power(0.0, power, 1e-2).solve(operator, normal(operator, 0)).value
    return (reference - by_lanczos).abs() / reference, (reference - by_power).abs() / reference


def shares(model: nn.Module, batch: Batch, size: int, reference_products: int) -> tuple[float, float]:
    """Share of images whose l_1 Lanczos finds to 1e-6 in 12 products, and power iteration to 1e-4 in 50."""
    by_lanczos, by_power = [], []
    for first in range(0, len(batch), size):
        part = batch.select(list(range(first, min(first + size, len(batch)))))
        operator = GramOperator(GenericJacobian(PerSampleRelease(model, F.cross_entropy), part))
        errors, power = relative_errors(operator, tight_reference(operator, reference_products), 12, 50)
        by_lanczos.append(errors)
        by_power.append(power)
    errors, power = torch.cat(by_lanczos), torch.cat(by_power)
    print(
        f"\n{type(model).__name__}, {len(batch)} images: Lanczos after 12 products, relative error of l_1 "
        f"median {errors.median():.1e}, max {errors.max():.1e}, "
        f"within 1e-6 on {(errors <= 1e-6).double().mean():.1%}; "
        f"power iteration after 50, median {power.median():.1e}, max {power.max():.1e}, "
        f"within 1e-4 on {(power <= 1e-4).double().mean():.1%}"
    )
    return float((errors <= 1e-6).double().mean()), float((power <= 1e-4).double().mean())


@pytest.mark.slow
def test_lenet_on_mnist() -> None:
    within, power = shares(cases.lenet(), cases.image_batch(cases.large_set("mnist_test.npz"), 64, 28), 16, 30)
    assert within >= 0.95
    assert power >= 0.95


@pytest.mark.slow
@pytest.mark.xfail(
    raises=AssertionError,
    reason="measured: Lanczos within 1e-6 on 6 of 8 images (largest error 2e-4), power within 1e-4 on 5 of 8",
)
def test_untrained_resnet18_on_cifar() -> None:
    """In float64: a float32 product is itself off by about 1e-6, the accuracy that is asked for."""
    torch.manual_seed(0)
    model = ARCHITECTURES["resnet18"].build(channels=3, classes=10).double().eval()
    within, power = shares(model, cases.cifar(8), 2, 40)
    assert within >= 0.95
    assert power >= 0.95
