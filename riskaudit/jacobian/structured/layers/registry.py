"""The functions of torch that may be given a trainable parameter, and what each makes of it.

A layer is called as its function is, with the recorder in front: it computes the output and records
what `Contraction` to make. Normalisations apply their weights apart from the normalisation itself,
convolutions pad beforehand where padding is uneven, attention is opened down to its projections.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from riskaudit.jacobian.structured.layers.bilinear import BilinearContraction
from riskaudit.jacobian.structured.layers.convolution import ConvolutionContraction
from riskaudit.jacobian.structured.layers.elementwise import ScaleShiftContraction, ShiftContraction
from riskaudit.jacobian.structured.layers.embedding import EmbeddingContraction
from riskaudit.jacobian.structured.layers.linear import LinearContraction
from riskaudit.jacobian.structured.layers.windows import Windows, differentiable_columns
from riskaudit.jacobian.structured.recording import Place, Recorder, UnsupportedLayer

Layer = Callable[..., Any]
AnyLayer = TypeVar("AnyLayer", bound=Layer)

LAYERS: dict[Callable[..., Any], Layer] = {}

# Functions of torch made of others, in a form that lets the recorder see these.
OPENED: dict[Callable[..., Any], Callable[..., Any]] = {}


def register(*functions: Callable[..., Any]) -> Callable[[AnyLayer], AnyLayer]:
    """Decorator: the layer stands for these functions of torch."""

    def add(layer: AnyLayer) -> AnyLayer:
        for function in functions:
            if function in LAYERS:
                raise ValueError(f"{function} is registered twice")
            LAYERS[function] = layer
        return layer

    return add


_aten = torch.ops.aten


# Layers with a weight and a bias.


@register(F.linear, _aten.linear.default)
def _linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return recorder.record(
        "Linear",
        [input],
        F.linear(input, weight, bias),
        lambda factors, roles, place: LinearContraction(factors, roles),
        weight=weight,
        bias=bias,
    )


@register(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(recorder: Recorder, input: Tensor, other: Tensor) -> Tensor:
    """x W with a parameter on the right: a linear layer without bias."""
    if recorder.source(other) is None or other.ndim != 2:
        raise UnsupportedLayer("matmul with a parameter that isn't a matrix on the right", _name(recorder, input))
    return _linear(recorder, input, recorder.rearranged(other, lambda tensor: tensor.mT))


@register(torch.bilinear, _aten.bilinear.default)
def _bilinear(recorder: Recorder, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return recorder.record(
        "Bilinear",
        [input1, input2],
        torch.bilinear(input1, input2, weight, bias),
        lambda factors, roles, place: BilinearContraction(factors, roles),
        weight=weight,
        bias=bias,
    )


def _convolution(dimensions: int, convolve: Callable[..., Tensor]) -> Layer:
    def layer(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] | int = 1,
        padding: Sequence[int] | int | str = 0,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
    ) -> Tensor:
        if input.ndim != dimensions + 2:
            raise UnsupportedLayer("a convolution of a single image without a batch")
        kernel, steps, spread = tuple(weight.shape[2:]), _each(stride, dimensions), _each(dilation, dimensions)
        if padding == "same":
            total = [d * (k - 1) for k, d in zip(kernel, spread, strict=True)]
            # More behind than before where it is odd, as torch does.
            input = F.pad(input, [amount for t in reversed(total) for amount in (t // 2, t - t // 2)])
        border = _each(0 if isinstance(padding, str) else padding, dimensions)
        windows, shape = Windows(kernel, steps, border, spread), weight.shape
        seen: Windows | None = windows
        if input.device.type == "cpu" and input.dtype == torch.float64:
            # torch's own convolution in double precision is several times slower than a product of matrices,
            # and the contraction needs the columns anyway.
            seen, places = None, windows.places(input.shape[2:])
            input = differentiable_columns(input, windows)
            output = torch.unflatten(_columns_times(input, weight, groups), 2, places)
            if bias is not None:
                output = output + bias.reshape(-1, *(1,) * dimensions)
        else:
            output = convolve(input, weight, bias, steps, border, spread, groups)

        def make(factors: list[Tensor], roles: frozenset[str], place: Place) -> ConvolutionContraction:
            if place.axis != 0:
                raise UnsupportedLayer("a convolution whose samples aren't along its first axis")
            return ConvolutionContraction(factors, roles, shape, seen, groups)

        return recorder.record(f"Conv{dimensions}d", [input], output, make, weight=weight, bias=bias)

    return layer


def _columns_times(columns: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A convolution of columns [N, C * prod(kernel), T] with a weight [c, C / groups, *kernel]; returns [N, c, T]."""
    if groups == 1:
        return weight.flatten(1) @ columns
    by_group = torch.unflatten(weight.flatten(1), 0, (groups, -1)), torch.unflatten(columns, 1, (groups, -1))
    return torch.matmul(*by_group).flatten(1, 2)


for _dimensions, _functions in enumerate(
    ((F.conv1d, _aten.conv1d.default), (F.conv2d, _aten.conv2d.default), (F.conv3d, _aten.conv3d.default)), 1
):
    register(*_functions)(_convolution(_dimensions, _functions[0]))


def _each(value: Sequence[int] | int, dimensions: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) if len(value) == dimensions else tuple(value) * dimensions


# Normalisations: the weights apart.


def _scaled(
    recorder: Recorder, layer: str, normal: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """Normal * weight + bias, each brought to ``shape`` (1 where it is repeated)."""
    output = normal
    if weight is not None:
        output = output * weight.reshape(shape)
    if bias is not None:
        output = output + bias.reshape(shape)
    given = {role: tensor for role, tensor in (("weight", weight), ("bias", bias)) if tensor is not None}
    shapes = {role: tensor.shape for role, tensor in given.items()}
    return recorder.record(
        layer,
        [normal],
        output,
        lambda factors, roles, place: ScaleShiftContraction(
            factors, roles, shapes, dict.fromkeys(shapes, place.beside(shape))
        ),
        **given,
    )


def _per_channel(input: Tensor) -> tuple[int, ...]:
    return (1, input.shape[1], *(1,) * (input.ndim - 2))


@register(F.batch_norm)
def _batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        raise UnsupportedLayer("batch norm with the statistics of the batch")
    shape = _per_channel(input)
    scale = torch.rsqrt(running_var + eps)
    normal = input * scale.reshape(shape) - (running_mean * scale).reshape(shape)
    return _scaled(recorder, "BatchNorm", normal, weight, bias, shape)


@register(torch.batch_norm, _aten.batch_norm.default)
def _aten_batch_norm(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _batch_norm(recorder, input, running_mean, running_var, weight, bias, training, momentum, eps)


@register(F.layer_norm, torch.layer_norm, _aten.layer_norm.default)
def _layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    normal = F.layer_norm(input, list(normalized_shape), None, None, eps)
    shape = (*(1,) * (input.ndim - len(normalized_shape)), *normalized_shape)
    return _scaled(recorder, "LayerNorm", normal, weight, bias, shape)


@register(F.rms_norm, torch.rms_norm, _aten.rms_norm.default)
def _rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    normal = F.rms_norm(input, list(normalized_shape), None, eps)
    shape = (*(1,) * (input.ndim - len(normalized_shape)), *normalized_shape)
    return _scaled(recorder, "RMSNorm", normal, weight, None, shape)


@register(F.group_norm, torch.group_norm, _aten.group_norm.default)
def _group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    return _scaled(
        recorder, "GroupNorm", F.group_norm(input, num_groups, None, None, eps), weight, bias, _per_channel(input)
    )


@register(F.instance_norm)
def _instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(recorder, input, running_mean, running_var, weight, bias, False, momentum, eps)
    normal = F.instance_norm(input, eps=eps)
    return _scaled(recorder, "InstanceNorm", normal, weight, bias, _per_channel(input))


@register(torch.instance_norm, _aten.instance_norm.default)
def _aten_instance_norm(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _instance_norm(recorder, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


# Parameters by themselves.


@register(F.embedding)
def _embedding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        raise UnsupportedLayer("an embedding with max_norm or scale_grad_by_freq")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    found = F.embedding(input, weight)
    if not recorder.follows_batch(any(size % recorder.num_samples == 0 for size in input.shape)):
        # The same rows for every sample, as positions are: the parameter, rearranged.
        return recorder.rearranged(weight, lambda tensor: _rows(tensor, input, padding_idx), found)
    rows = len(weight)

    def make(factors: list[Tensor], roles: frozenset[str], place: Place) -> EmbeddingContraction:
        numbers = place.first(input, recorder.num_samples)
        return EmbeddingContraction(factors, roles, numbers, rows, padding_idx)

    return recorder.record("Embedding", [], found, make, weight=weight)


def _rows(weight: Tensor, numbers: Tensor, padding: int | None) -> Tensor:
    """Rows of a tangent [V, E]; the padding row has no gradient, so its tangent is zero."""
    found = weight[numbers]
    return found if padding is None else found * (numbers != padding)[..., None]


@register(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply)
def _multiply(recorder: Recorder, input: Tensor | float, other: Tensor | float) -> Tensor:
    parameter, factor = (input, other) if recorder.source(input) is not None else (other, input)
    assert isinstance(parameter, Tensor)
    if not isinstance(factor, Tensor):
        return recorder.rearranged(parameter, lambda tensor: tensor * factor)
    output = factor * parameter
    # As masks of weights do.
    constant = not factor.requires_grad and recorder.source(factor) is None and output.shape == parameter.shape
    if not recorder.follows_batch(not constant):
        kept = factor.clone()
        return recorder.rearranged(parameter, lambda tensor: tensor * kept)
    shape, own = _aligned(parameter, output), {"weight": parameter.shape}
    if recorder.source(factor) is not None:
        raise UnsupportedLayer("a product of two parameters", _name(recorder, parameter))
    return recorder.record(
        "a product with a parameter",
        [factor.expand(output.shape)],
        output,
        lambda factors, roles, place: ScaleShiftContraction(factors, roles, own, {"weight": place.beside(shape)}),
        weight=parameter,
    )


@register(torch.div, Tensor.div, Tensor.__truediv__)
def _divide(recorder: Recorder, input: Tensor, other: Tensor | float) -> Tensor:
    if isinstance(other, Tensor):
        raise UnsupportedLayer("a quotient with a parameter", _name(recorder, input))
    return recorder.rearranged(input, lambda tensor: tensor / other)


@register(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(recorder: Recorder, input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    parameter, term = (input, other) if recorder.source(input) is not None else (other, input)
    assert isinstance(parameter, Tensor)
    if alpha != 1:
        raise UnsupportedLayer("a sum with a scaled parameter", _name(recorder, parameter))
    if not isinstance(term, Tensor):
        # A constant has no tangent.
        return recorder.rearranged(parameter, lambda tensor: tensor * 1, parameter + term)
    return _shift(recorder, parameter, term + parameter)


@register(Tensor.add_, Tensor.__iadd__)
def _add_in_place(recorder: Recorder, input: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    parameter = other if isinstance(other, Tensor) else input
    if recorder.source(input) is not None or not input.requires_grad or alpha != 1:
        raise UnsupportedLayer("a sum in place with a parameter", _name(recorder, parameter))
    return _shift(recorder, parameter, input.add_(parameter))


@register(torch.sub, Tensor.sub, Tensor.__sub__)
def _subtract(recorder: Recorder, input: Tensor | float, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    if isinstance(other, Tensor) and recorder.source(other) is not None:
        return _add(recorder, input, recorder.rearranged(other, torch.neg), alpha=alpha)
    return _add(recorder, input, -other, alpha=alpha)


def _shift(recorder: Recorder, parameter: Tensor, output: Tensor) -> Tensor:
    """An output that a parameter was added to, or that is the parameter, repeated."""
    shape, own = _aligned(parameter, output), parameter.shape
    return recorder.record(
        "a sum with a parameter",
        [],
        output,
        lambda factors, roles, place: ShiftContraction(factors, roles, own, place.beside(shape)),
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
    if recorder.follows_batch(grown and result.shape[0] == recorder.num_samples):
        return _shift(recorder, tensor, result)
    return recorder.rearranged(tensor, view)


def _view(function: Callable[..., Tensor]) -> Layer:
    def layer(recorder: Recorder, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((rest, named))):
            raise UnsupportedLayer("a parameter indexed by a tensor", _name(recorder, tensor))
        return recorder.rearranged(tensor, lambda value: function(value, *rest, **named))

    return layer


for _function in (
    Tensor.view, Tensor.reshape, Tensor.unsqueeze, Tensor.squeeze, Tensor.transpose, Tensor.t, Tensor.permute,
    Tensor.flatten, Tensor.unflatten, Tensor.contiguous, Tensor.clone, Tensor.__getitem__, Tensor.movedim,
    Tensor.swapaxes, Tensor.T.__get__, Tensor.mT.__get__, Tensor.__neg__,  # type: ignore[attr-defined]
    torch.reshape, torch.unsqueeze, torch.squeeze, torch.transpose, torch.t, torch.permute, torch.flatten,
    torch.movedim, torch.swapaxes, torch.clone, torch.neg, Tensor.neg, Tensor.view_as, Tensor.narrow, torch.narrow,
    Tensor.select, torch.select,
):  # fmt: skip
    if _function not in LAYERS:
        register(_function)(_view(_function))


def _cut(function: Callable[..., Sequence[Tensor]]) -> Layer:
    """A function that cuts a parameter into parts, each a view."""

    def part(number: int, *rest: Any, **named: Any) -> Callable[[Tensor], Tensor]:
        return lambda value: function(value, *rest, **named)[number]

    def layer(recorder: Recorder, tensor: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, ...]:
        count = len(function(tensor, *rest, **named))
        return tuple(recorder.rearranged(tensor, part(number, *rest, **named)) for number in range(count))

    return layer


for _cutting in (Tensor.chunk, torch.chunk, Tensor.split, torch.split, Tensor.unbind, torch.unbind):
    register(_cutting)(_cut(_cutting))


@register(Tensor.detach, torch.detach)
def _detach(recorder: Recorder, input: Tensor) -> Tensor:
    return recorder.constant(input)


def _conversion(function: Callable[..., Tensor]) -> Layer:
    """A conversion of dtype or device, known where it has nothing to convert."""

    def layer(recorder: Recorder, tensor: Tensor, *rest: Any, **named: Any) -> Tensor:
        result = function(tensor, *rest, **named)
        if (result.dtype, result.device) != (tensor.dtype, tensor.device):
            raise UnsupportedLayer("a parameter converted to another dtype or device", _name(recorder, tensor))
        return recorder.rearranged(tensor, lambda value: value.clone())

    return layer


for _converting in (Tensor.to, Tensor.float, Tensor.double, Tensor.type_as):
    register(_converting)(_conversion(_converting))


def _name(recorder: Recorder, tensor: Tensor) -> str | None:
    source = recorder.source(tensor)
    return None if source is None else source.name


# Functions made of others.


def _opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A composite function of torch, run so that the recorder sees the functions that it calls."""
    assert isinstance(function, types.FunctionType)
    # The function hands itself to the recorder whole as long as this says that somebody listens.
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


OPENED[F.multi_head_attention_forward] = _opened(F.multi_head_attention_forward)
