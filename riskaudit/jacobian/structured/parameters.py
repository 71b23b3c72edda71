"""Tensors in the shapes of a release's parameters: what calls of layers say of them, and vectors of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vjp, vmap

from riskaudit.jacobian.structured.layers.contraction import Parameters
from riskaudit.jacobian.structured.recording import Source
from riskaudit.jacobian.structured.signals import BoundCall


class ParameterSpace:
    """Of B samples, one tensor of each parameter's shape per sample.

    Args:
        parameters: of the release, in its order.
        num_samples: B.
    """

    def __init__(self, parameters: Mapping[str, Tensor], num_samples: int) -> None:
        self.parameters, self.num_samples = parameters, num_samples

    def summed(self, names: set[str], found: Sequence[tuple[BoundCall, Parameters]]) -> Parameters:
        """What calls say of their parameters, each rearranged to the parameter's own shape, added up."""
        total: dict[str, Tensor] = {}
        for call, parameters in found:
            for role, value in parameters.items():
                source = call.sources[role]
                own = self._unviewed(source, value)
                total[source.name] = own if source.name not in total else total[source.name] + own
        return {name: total[name] for name in sorted(names)}

    def flat(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """[B, P] in the release's order; parameters that the loss doesn't depend on are zero."""
        pieces = []
        for name, parameter in self.parameters.items():
            found = parameters.get(name)
            pieces.append(
                parameter.new_zeros(self.num_samples, parameter.numel())
                if found is None
                else found.reshape(self.num_samples, -1)
            )
        return torch.cat(pieces, dim=1)

    def pieces(self, flat: Tensor) -> Parameters:
        """[..., P] by parameter, [..., *shape]."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        pieces = torch.split_with_sizes(flat, sizes, -1)
        return {
            name: piece.reshape(*flat.shape[:-1], *parameter.shape)
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def _unviewed(self, source: Source, value: Tensor) -> Tensor:
        """Transpose of a source's views, on [B, *shape after them]."""
        if not source.views:
            return value
        parameter = self.parameters[source.name]

        def transpose(cotangent: Tensor) -> Tensor:
            pullback: Callable[[Tensor], tuple[Tensor]]
            _, pullback = vjp(source, torch.zeros_like(parameter))  # type: ignore[misc]
            pulled: Tensor = pullback(cotangent)[0]
            return pulled

        with torch.enable_grad():
            own: Tensor = vmap(transpose)(value)
        return own
