"""Parameters that scale or shift what passes: the weights of normalizations, and plain products and sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.structured.contraction import FormedContraction, Parameters, select_roles
from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import UnsupportedLayer, register


@final
class ScaleShiftContraction(FormedContraction):
    """y = a * weight + bias, both broadcast as [1, ...] against a [B, ...]; factors a and b.

    Args:
        factors: a and b, of one shape.
        roles: "weight" and "bias", or one of them.
        shapes: the parameters' own shapes per role.
        broadcast: the shape that a parameter takes beside one sample, [...], 1 where it is repeated.
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        roles: frozenset[str],
        shapes: Mapping[str, torch.Size],
        broadcast: Mapping[str, tuple[int, ...]],
    ) -> None:
        super().__init__(factors, roles)
        self.shapes, self.broadcast = shapes, broadcast

    @override
    def gradient(self) -> Parameters:
        a, b = self.factors
        return select_roles(
            self.roles, weight=lambda: self._summed("weight", a * b), bias=lambda: self._summed("bias", b)
        )

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """Of the weight: da b + a db, summed over where it is repeated."""
        (a, b), (da, db) = self.factors, tangents
        return select_roles(
            self.roles,
            weight=lambda: self._summed("weight", torch.addcmul(da * b, a, db)),
            bias=lambda: self._summed("bias", db),
        )

    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        """U b and U a."""
        a, b = self.factors
        inputs, signals = torch.zeros_like(a), torch.zeros_like(b)
        if "weight" in cotangents:
            weight = self._repeated("weight", cotangents["weight"])
            inputs, signals = weight * b, weight * a
        if "bias" in cotangents:
            signals = signals + self._repeated("bias", cotangents["bias"])
        return [inputs, signals]

    @override
    def held_numbers(self) -> int:
        return 0

    def _summed(self, role: str, values: Tensor) -> Tensor:
        repeated = [axis for axis, size in enumerate(self.broadcast[role], 1) if size == 1]
        if repeated:
            values = values.sum(repeated)
        return values.reshape(len(values), *self.shapes[role])

    def _repeated(self, role: str, parameters: Tensor) -> Tensor:
        return parameters.reshape(len(parameters), *self.broadcast[role])


@final
class ShiftContraction(FormedContraction):
    """A parameter that is repeated over the samples and used as it is: y = p; the only factor is b [B, ...].

    Args:
        factors: b.
        roles: "value".
        shape: the parameter's own shape.
        broadcast: the shape that it takes beside one sample, 1 where it is repeated.
    """

    def __init__(
        self, factors: Sequence[Tensor], roles: frozenset[str], shape: torch.Size, broadcast: tuple[int, ...]
    ) -> None:
        super().__init__(factors, roles)
        self.shape, self.broadcast = shape, broadcast

    @override
    def gradient(self) -> Parameters:
        return self.tangent(self.factors)

    def tangent(self, tangents: Sequence[Tensor]) -> Parameters:
        """The signal's tangent, summed over where the parameter is repeated."""
        (db,) = tangents
        repeated = [axis for axis, size in enumerate(self.broadcast, 1) if size == 1]
        summed = db.sum(repeated) if repeated else db
        return {"value": summed.reshape(len(db), *self.shape)}

    @override
    def cotangent(self, cotangents: Mapping[str, Tensor]) -> list[Tensor]:
        (b,) = self.factors
        return [cotangents["value"].reshape(len(b), *self.broadcast).expand_as(b)]

    @override
    def held_numbers(self) -> int:
        return 0


@register(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply)
def _multiply(recorder: Recorder, input: Tensor | float, other: Tensor | float) -> Tensor:
    parameter, factor = (input, other) if recorder.source(input) is not None else (other, input)
    assert isinstance(parameter, Tensor)
    if not isinstance(factor, Tensor):
        return recorder.record_view(parameter, lambda tensor: tensor * factor)
    output = factor * parameter
    # As masks of weights do.
    constant = not factor.requires_grad and recorder.source(factor) is None and output.shape == parameter.shape
    if not recorder.depends_on_batch(not constant):
        mask = factor.clone()
        return recorder.record_view(parameter, lambda tensor: tensor * mask)
    shape, shapes = _aligned(parameter, output), {"weight": parameter.shape}
    if recorder.source(factor) is not None:
        raise UnsupportedLayer("a product of two parameters", recorder.name_of(parameter))
    return recorder.record_call(
        "a product with a parameter",
        [factor.expand(output.shape)],
        output,
        lambda factors, roles, axis: ScaleShiftContraction(
            factors, roles, shapes, {"weight": axis.parameter_shape(shape)}
        ),
        weight=parameter,
    )


@register(torch.div, Tensor.div, Tensor.__truediv__)
def _divide(recorder: Recorder, input: Tensor, other: Tensor | float) -> Tensor:
    if isinstance(other, Tensor):
        raise UnsupportedLayer("a quotient with a parameter", recorder.name_of(input))
    return recorder.record_view(input, lambda tensor: tensor / other)


@register(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(recorder: Recorder, input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    parameter, term = (input, other) if recorder.source(input) is not None else (other, input)
    assert isinstance(parameter, Tensor)
    if alpha != 1:
        raise UnsupportedLayer("a sum with a scaled parameter", recorder.name_of(parameter))
    if not isinstance(term, Tensor):
        # A constant has no tangent.
        return recorder.record_view(parameter, lambda tensor: tensor * 1, parameter + term)
    return _shift(recorder, parameter, term + parameter)


@register(Tensor.add_, Tensor.__iadd__)
def _add_in_place(recorder: Recorder, input: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    parameter = other if isinstance(other, Tensor) else input
    if recorder.source(input) is not None or not input.requires_grad or alpha != 1:
        raise UnsupportedLayer("a sum in place with a parameter", recorder.name_of(parameter))
    return _shift(recorder, parameter, input.add_(parameter))


@register(torch.sub, Tensor.sub, Tensor.__sub__)
def _subtract(recorder: Recorder, input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    if isinstance(other, Tensor) and recorder.source(other) is not None:
        return _add(recorder, input, recorder.record_view(other, torch.neg), alpha=alpha)
    return _add(recorder, input, -other, alpha=alpha)


def _shift(recorder: Recorder, parameter: Tensor, output: Tensor) -> Tensor:
    """An output that a parameter was added to, or that is the parameter, repeated."""
    aligned, shape = _aligned(parameter, output), parameter.shape
    return recorder.record_call(
        "a sum with a parameter",
        [],
        output,
        lambda factors, roles, axis: ShiftContraction(factors, roles, shape, axis.parameter_shape(aligned)),
        value=parameter,
    )


def _aligned(parameter: Tensor, output: Tensor) -> tuple[int, ...]:
    return (*(1,) * (output.ndim - parameter.ndim), *parameter.shape)


@register(Tensor.expand)
def _expand(recorder: Recorder, tensor: Tensor, *size: Any) -> Tensor:
    return _repeated(recorder, tensor, lambda value: value.expand(*size))


@register(Tensor.expand_as)
def _expand_as(recorder: Recorder, tensor: Tensor, other: Tensor) -> Tensor:
    shape = other.shape
    return _repeated(recorder, tensor, lambda value: value.expand(shape))


@register(Tensor.repeat)
def _repeat(recorder: Recorder, tensor: Tensor, *counts: Any) -> Tensor:
    result = tensor.repeat(*counts)
    if result.shape[1:] != torch.Size((1,) * (result.ndim - tensor.ndim) + tuple(tensor.shape))[1:]:
        raise UnsupportedLayer("a parameter repeated beyond the batch")
    return _repeated(recorder, tensor, lambda value: value.expand(result.shape))


def _repeated(recorder: Recorder, tensor: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    result = view(tensor)
    grown = result.ndim > tensor.ndim or tensor.shape[0] != result.shape[0]
    if recorder.depends_on_batch(grown and result.shape[0] == recorder.num_samples):
        return _shift(recorder, tensor, result)
    return recorder.record_view(tensor, view)
