"""Small models of a few layers, checked against plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from contracts.same_jacobian import check_generic, check_products, random_batch, randomise
from torch import Tensor, nn

from riskaudit.jacobian import StructuredJacobian


class Apply(nn.Module):
    """A function of the modules and parameters given, and of x."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))


def headed(*layers: nn.Module) -> nn.Sequential:
    """Layers between nonlinearities, so that signals vary, and a head with four classes."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(4))


def built(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Lazy layers made, weights random."""
    model.double().eval()
    with torch.no_grad():
        model(torch.rand(2, *shape, dtype=torch.float64))
    return randomise(model, seed)


def checked(model: nn.Module, shape: tuple[int, ...], count: int = 2, *, generic: bool = False) -> StructuredJacobian:
    model = built(model, shape)
    jacobian = check_products(model, random_batch(count, *shape))
    if generic:
        check_generic(jacobian)
    return jacobian


def layers_of(jacobian: StructuredJacobian) -> set[str]:
    return {call.layer for call in jacobian.layout.calls}
