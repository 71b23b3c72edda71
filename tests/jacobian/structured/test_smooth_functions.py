"""Functions whose second derivatives are written out, against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contracts.linear_operator import normal
from small_models import checked, headed
from torch import Tensor, nn

from riskaudit.jacobian.structured.normalized import normalized_channels
from riskaudit.jacobian.structured.registry import SMOOTH

aten = torch.ops.aten
WEIGHTS = {"weight": normal(4, seed=5), "bias": normal(4, seed=6)}
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "gelu": (F.gelu, SMOOTH[F.gelu]),
    "gelu, tanh": (partial(F.gelu, approximate="tanh"), partial(SMOOTH[F.gelu], approximate="tanh")),
    "silu": (F.silu, SMOOTH[F.silu]),
    "layer norm": (
        lambda x: F.layer_norm(x, (4,), **WEIGHTS), lambda x: SMOOTH[F.layer_norm](x, (4,), **WEIGHTS)
    ),
    "layer norm over two axes": (lambda x: F.layer_norm(x, (3, 4)), lambda x: SMOOTH[F.layer_norm](x, (3, 4))),
    "batch norm": (
        lambda x: F.batch_norm(x, None, None, training=True), lambda x: normalized_channels(x, 1e-5)
    ),
}  # fmt: skip


def derivatives(function: Callable[[Tensor], Tensor], double: bool) -> list[Tensor]:
    """y, A s for signals s, what both change along a step, and the transpose of that, as Phi's products take them."""
    x, s, step, cotangent = (normal(2, 3, 4, seed=seed) for seed in range(4))
    if not double:
        x, s, step, cotangent = (each.float() for each in (x, s, step, cotangent))
    x.requires_grad_()
    # Not contiguous, as activations of attention are.
    y = function(x.mT.contiguous().mT)
    (back,) = torch.autograd.grad(y, x, s, create_graph=True)
    weights = [torch.zeros_like(part, requires_grad=True) for part in (y, back)]
    (pulled,) = torch.autograd.grad([y, back], x, weights, create_graph=True)
    pushed = torch.autograd.grad(pulled, weights, step, retain_graph=True)
    (transposed,) = torch.autograd.grad([y, back], x, [step, cotangent], retain_graph=True)
    return [part.detach() for part in (y, back, *pushed, transposed)]


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CALLS)
def test_derivatives(name: str, double: bool) -> None:
    plain, smooth = CALLS[name]
    if not double and name == "layer norm":
        pytest.skip("weights in double precision")
    for found, expected in zip(derivatives(smooth, double), derivatives(plain, double), strict=True):
        assert found.dtype == expected.dtype
        assert float((found - expected).norm()) < (1e-13 if double else 1e-5) * float(expected.norm())


@pytest.mark.parametrize("extreme", [-60.0, -12.0, 0.0, 12.0, 60.0])
@pytest.mark.parametrize("name", ["gelu", "gelu, tanh", "silu"])
def test_far_from_zero(name: str, extreme: float) -> None:
    """Finite, and as torch has it."""
    slopes = []
    for function in CALLS[name]:
        x = torch.tensor([extreme], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, x)
        slopes.append(torch.stack([slope.detach(), curvature]))
    assert torch.allclose(*slopes, rtol=1e-12, atol=1e-14)


def test_every_function_is_among_them() -> None:
    others = {aten.gelu.default, aten.silu.default, torch.layer_norm, aten.layer_norm.default}
    assert set(SMOOTH) == {F.gelu, F.silu, F.layer_norm, *others}


@pytest.mark.parametrize("layer", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True)], ids=str)
def test_between_layers(layer: nn.Module) -> None:
    checked(headed(nn.Linear(4, 5), layer, nn.Linear(5, 3)), (2, 4), 3, generic=True)


def test_overwritten_afterwards() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hidden = F.gelu(F.layer_norm(x, x.shape[1:]))
            hidden *= 2
            return hidden

    checked(headed(nn.Linear(4, 5), Scaled(), nn.Linear(5, 3)), (4,), 2, generic=True)
