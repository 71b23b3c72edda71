"""The gradient of a model by its calls: a function of Phi, with its derivative and the transpose of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import vjp, vmap

from riskaudit.jacobian.structured.contraction import Parameters
from riskaudit.jacobian.structured.layers.linear import LinearContraction
from riskaudit.jacobian.structured.recording import Source
from riskaudit.jacobian.structured.signals import BoundCall, Signals

# Calls that share parameters, and the names of these.
Group: TypeAlias = tuple[list[BoundCall], set[str]]


class Gradient:
    """Of B samples, before any step of a release; one tensor of each parameter's shape per sample.

    Args:
        parameters: of the release, in its order.
        signals: Phi at the batch.
    """

    def __init__(self, parameters: Mapping[str, Tensor], signals: Signals) -> None:
        self.parameters, self.signals, self.num_samples = parameters, signals, signals.num_samples

    @cached_property
    def groups(self) -> list[Group]:
        """Calls that share parameters, together, and the names of those parameters."""
        groups: list[Group] = []
        for call in self.signals.calls:
            members, names = [call], {source.name for source in call.sources.values()}
            apart = []
            for group in groups:
                if group[1] & names:
                    members, names = group[0] + members, names | group[1]
                else:
                    apart.append(group)
            groups = [*apart, (members, names)]
        return groups

    def values(self) -> Tensor:
        """The gradient, [B, P]."""
        return self.flat(self.by_group(group) for group in self.groups)

    def by_group(self, group: Group) -> Parameters:
        """The gradient of the parameters of a group."""
        calls, names = group
        return self._summed(names, [(call, call.contraction.gradient()) for call in calls])

    def push(self, tangents: Sequence[Tensor]) -> Tensor:
        """Derivative of the gradient, [B, P], along tangents of the parts of Phi."""
        return self.flat(self._tangents(group, tangents) for group in self.groups)

    def push_rotated(self, tangents: Sequence[Tensor]) -> Tensor:
        """`push` up to a rotation, [B, r]."""
        rows = []
        for group in self.groups:
            if is_direct(group):
                (call,) = group[0]
                rows.append(call.contraction.rotated_tangent(self.factors(call, tangents)))
            else:
                rows += [value.reshape(len(value), -1) for value in self._tangents(group, tangents).values()]
        return torch.cat(rows, dim=1)

    def pull(self, gradients: Tensor) -> Tensor:
        """Transpose of `push` and of DPhi, [B, P] to [B, d]."""
        cotangents: list[Tensor | None] = [None] * len(self.signals.parts)
        parameters = self.pieces(gradients)
        for calls, _ in self.groups:
            self._add_cotangents(cotangents, calls, parameters)
        return self.signals.pull(cotangents).reshape(self.num_samples, -1)

    def push_and_pull(self, tangents: Sequence[Tensor], mask: Parameters | None = None) -> Tensor:
        """`pull` of `push`, [B, d], each layer's part as it is cheapest.

        Args:
            tangents: see `push`.
            mask: factors of the gradient's entries in between, by parameter.
        """
        cotangents: list[Tensor | None] = [None] * len(self.signals.parts)
        for group in self.groups:
            calls, _ = group
            if mask is None and is_direct(group):
                (call,) = calls
                self._add(cotangents, call, call.contraction.gram(self.factors(call, tangents)))
                continue
            parameters = self._tangents(group, tangents)
            if mask is not None:
                parameters = {name: value * mask[name] for name, value in parameters.items()}
            self._add_cotangents(cotangents, calls, parameters)
        return self.signals.pull(cotangents).reshape(self.num_samples, -1)

    def factors(self, call: BoundCall, parts: Sequence[Tensor]) -> list[Tensor]:
        """A call's factors, or their tangents, [B, ...] each, out of those of all parts of Phi."""
        pairs = zip(call.factors, call.axes, strict=True)
        return [axis.samples_first(parts[position], self.num_samples) for position, axis in pairs]

    def flat(self, groups: Iterable[Mapping[str, Tensor]]) -> Tensor:
        """[B, P] in the release's order; parameters that the loss doesn't depend on are zero."""
        values = {name: value for group in groups for name, value in group.items()}
        pieces = [
            values[name].reshape(self.num_samples, -1)
            if name in values
            else parameter.new_zeros(self.num_samples, parameter.numel())
            for name, parameter in self.parameters.items()
        ]
        return torch.cat(pieces, dim=1)

    def pieces(self, flat: Tensor) -> Parameters:
        """[..., P] by parameter, [..., *shape]."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        pieces = zip(self.parameters.items(), torch.split_with_sizes(flat, sizes, -1), strict=True)
        return {name: piece.reshape(*flat.shape[:-1], *parameter.shape) for (name, parameter), piece in pieces}

    def _tangents(self, group: Group, tangents: Sequence[Tensor]) -> Parameters:
        """Tangents [B, *shape] of the gradient of the parameters of a group."""
        calls, names = group
        return self._summed(names, [(call, call.contraction.tangent(self.factors(call, tangents))) for call in calls])

    def _add_cotangents(
        self, cotangents: list[Tensor | None], calls: list[BoundCall], parameters: Mapping[str, Tensor]
    ) -> None:
        for call in calls:
            by_role = {
                role: vmap(source)(parameters[source.name]) if source.views else parameters[source.name]
                for role, source in call.sources.items()
            }
            self._add(cotangents, call, call.contraction.cotangent(by_role))

    def _add(self, cotangents: list[Tensor | None], call: BoundCall, values: list[Tensor]) -> None:
        """Add cotangents of a call's factors to those of the parts of Phi."""
        for position, axis, value in zip(call.factors, call.axes, values, strict=True):
            term, before = axis.restored(value), cotangents[position]
            cotangents[position] = term if before is None else before + term

    def _summed(self, names: set[str], by_call: Sequence[tuple[BoundCall, Parameters]]) -> Parameters:
        """What calls say of their parameters, each rearranged to the parameter's own shape, added up."""
        total: dict[str, Tensor] = {}
        for call, parameters in by_call:
            for role, value in parameters.items():
                source = call.sources[role]
                term = self._unviewed(source, value)
                total[source.name] = term if source.name not in total else total[source.name] + term
        return {name: total[name] for name in sorted(names)}

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
            transposed: Tensor = vmap(transpose)(value)
        return transposed


def is_direct(group: Group) -> bool:
    """Whether parameters belong to one call and one role each, as they are: no tangent of them is needed."""
    calls, names = group
    if len(calls) > 1:
        return False
    sources = list(calls[0].sources.values())
    return len(sources) == len(names) and not any(source.views for source in sources)


def is_outer_product(group: Group) -> bool:
    """Whether the gradient of a group's parameters is b a^T, or b (a, 1)^T with a bias, up to the order of entries."""
    contraction = group[0][0].contraction
    return (
        is_direct(group)
        and isinstance(contraction, LinearContraction)
        and contraction.factors[0].shape[1] == 1
        and "weight" in contraction.roles
    )
