"""What signs see of a model: the weights of its layers, which units are active for which sample, and its last layer.

One pass over the samples, under a ``TorchFunctionMode`` that sees every function of torch: modules, plain functions
and exported programs are one case. A layer is named by its weight's name in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from riskaudit.errors import SamplesError
from riskaudit.inputs.text import clean
from riskaudit.jacobian.structured.registry import COMPOSITES
from riskaudit.release.interception import Interception

Kind: TypeAlias = Literal["linear", "convolution"]
# Samples that pass at once.
_CHUNK = 16
_LINEAR = frozenset({"linear", "addmm"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSES = frozenset({"t", "transpose", "mT", "numpy_T"})
# Where the derivative of these is 0, or nearly so, a sample leaves nothing in a unit's gradient: from where to where
# it isn't.
_GATES: dict[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "gelu": (0.0, math.inf),
    "silu": (0.0, math.inf),
    "mish": (0.0, math.inf),
    "hardswish": (0.0, math.inf),
    "hardtanh": (-1.0, 1.0),
    "clamp": (-math.inf, math.inf),
    "clamp_min": (-math.inf, math.inf),
    "threshold": (0.0, math.inf),
}
_LOW = ("min_val", "min", "threshold")
_HIGH = ("max_val", "max")


@dataclass(frozen=True, eq=False)
class Layer:
    """A fully connected layer or a convolution.

    Attributes:
        kind: which of the two.
        weight: [m, a], or [m, c, *kernel].
        bias: [m]; None without one.
        groups: of a convolution.
        low: least w . x of every unit over the samples, without the bias, [m]; None of a convolution.
        high: likewise the greatest.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor | None
    groups: int = 1
    low: Tensor | None = None
    high: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer, whose outputs [N, C] are the model's.

    Attributes:
        layer: its name.
        inputs: features [N, a].
        weight: [C, a].
        bias: [C].
    """

    layer: str
    inputs: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def logits(self) -> Tensor:
        """[N, C]."""
        return self.inputs @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class ObservedModel:
    """A model on N samples.

    Attributes:
        layers: by name, in the order of their first calls.
        gates: for every activation that passes some inputs on and stops others, by the name of the layer before it:
            which unit is active for which sample, at any position, [N, m].
        head: None where the outputs aren't those of a fully connected layer.
        weights: parameters with two or more sizes, by name.
        num_samples: N.
        batch_size: samples that a client takes the gradient of at once.
        multiplications: of one pass, per sample.
        classifies: whether the loss is the cross-entropy of the outputs.
        magnification: the largest singular value of the gradient's Jacobian, or why there is none.
    """

    layers: Mapping[str, Layer]
    gates: Mapping[str, Tensor]
    head: Head | None
    weights: Mapping[str, Tensor]
    num_samples: int
    batch_size: int
    multiplications: int
    classifies: bool = True
    magnification: float | str = "products with the Jacobian weren't made"


@torch.no_grad()
def observe(model: nn.Module, inputs: Tensor, batch_size: int, classifies: bool = True) -> ObservedModel:
    """One pass of a model over samples.

    Args:
        model: in eval mode.
        inputs: [N, *S], in the model's dtype.
        batch_size: samples that a client takes the gradient of at once.
        classifies: whether the loss is the cross-entropy of the outputs.

    Raises:
        SamplesError: the model can't be run on them.
    """
    chunks = [_pass(model, inputs[start : start + _CHUNK]) for start in range(0, len(inputs), _CHUNK)]
    first = chunks[0]
    layers = {name: _merged([chunk.layers[name] for chunk in chunks if name in chunk.layers]) for name in first.layers}
    gates = {
        name: torch.cat([chunk.gates[name] for chunk in chunks])
        for name in first.gates
        if all(name in chunk.gates for chunk in chunks)
    }
    heads = [chunk.head for chunk in chunks]
    head = None
    if heads[0] is not None:
        features = torch.cat([each.inputs for each in heads if each is not None])
        head = Head(heads[0].layer, features, heads[0].weight, heads[0].bias) if len(features) == len(inputs) else None
    weights = {name: value.detach() for name, value in model.named_parameters() if value.ndim >= 2 and value.numel()}
    work = first.multiplications // min(_CHUNK, len(inputs))
    size = min(batch_size, len(inputs))
    return ObservedModel(layers, gates, head, weights, len(inputs), size, work, classifies)


@dataclass
class _Pass:
    layers: dict[str, Layer] = field(default_factory=dict)
    gates: dict[str, Tensor] = field(default_factory=dict)
    head: Head | None = None
    multiplications: int = 0


def _pass(model: nn.Module, inputs: Tensor) -> _Pass:
    recorder = _Recorder(model, len(inputs))
    try:
        with recorder:
            outputs = model(inputs)
    except Exception as error:  # third-party code may raise anything, and quote its inputs
        raise SamplesError(
            f"the model can't be run on the samples ({clean(type(error).__name__)}); hand in samples that it takes"
        ) from error
    if isinstance(outputs, Tensor) and not bool(torch.isfinite(outputs).all()):
        raise SamplesError("the model's outputs on the samples aren't finite numbers, so that nothing can be judged")
    recorder.find_head(outputs)
    return recorder.passed


class _Recorder(Interception):
    def __init__(self, model: nn.Module, num_samples: int) -> None:
        super().__init__()
        self.passed = _Pass()
        self._num_samples = num_samples
        self._names = {id(value): name for name, value in (*model.named_parameters(), *model.named_buffers())}
        # Of tensors while they live: the weight that they are the transpose of, the layer that they come from and the
        # axis of that layer's units.
        self._transposes: Any = WeakTensorKeyDictionary()
        self._producers: Any = WeakTensorKeyDictionary()
        self._last: tuple[Head, Tensor] | None = None

    @override
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if function in COMPOSITES:
            with self:
                return COMPOSITES[function](*args, **kwargs)
        # The name of an operator of aten has that of its overload behind it, one that overwrites an underscore.
        name = str(getattr(function, "__name__", "")).partition(".")[0].rstrip("_")
        if name in _GATES:
            self._gate(name, args, kwargs)
        result = function(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        if name in _LINEAR:
            self._linear(name, args, kwargs, result)
        elif name in _CONVOLUTIONS:
            self._convolution(args, kwargs, result)
        elif name in _TRANSPOSES and args and id(args[0]) in self._names:
            self._transposes[result] = args[0]
        else:
            self._follow(args, result)
        return result

    def find_head(self, outputs: object) -> None:
        """Take the last fully connected layer for the head, where the outputs have its shape."""
        if self._last is None or not isinstance(outputs, Tensor):
            return
        head, logits = self._last
        if logits.shape == outputs.shape and head.inputs.ndim == 2:
            self.passed.head = head

    def _linear(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        if name == "linear":
            inputs, weight, bias = (_argument(args, kwargs, *key) for key in enumerate(("input", "weight", "bias")))
        else:
            bias, inputs, transposed = (_argument(args, kwargs, *key) for key in enumerate(("input", "mat1", "mat2")))
            weight = self._transposes.get(transposed) if isinstance(transposed, Tensor) else None
        if not isinstance(weight, Tensor) or weight.ndim != 2 or not isinstance(inputs, Tensor):
            return
        rows = result.reshape(-1, result.shape[-1])
        rows = rows if bias is None else rows - bias
        known = bias.detach() if isinstance(bias, Tensor) else None
        layer = Layer("linear", weight.detach(), known, low=rows.amin(0), high=rows.amax(0))
        named = self._add(weight, layer)
        self.passed.multiplications += result.numel() * weight.shape[1]
        self._producers[result] = named, result.ndim - 1
        zeros = weight.new_zeros(len(weight))
        self._last = Head(named, inputs.detach(), weight.detach(), zeros if known is None else known), result

    def _convolution(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        weight, bias = _argument(args, kwargs, 1, "weight"), _argument(args, kwargs, 2, "bias")
        groups = _argument(args, kwargs, 6, "groups")
        if not isinstance(weight, Tensor):
            return
        known = bias.detach() if isinstance(bias, Tensor) else None
        named = self._add(weight, Layer("convolution", weight.detach(), known, 1 if groups is None else int(groups)))
        self.passed.multiplications += result.numel() * math.prod(weight.shape[1:])
        self._producers[result] = named, result.ndim + 1 - weight.ndim

    def _gate(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        value = _argument(args, kwargs, 0, "input")
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) % self._num_samples:
            return
        low, high = _GATES[name]
        given = [each for each in args[1:3] if isinstance(each, int | float) and not isinstance(each, bool)]
        if name not in ("relu", "gelu", "silu", "mish", "hardswish", "relu6"):
            low = next((float(kwargs[key]) for key in _LOW if isinstance(kwargs.get(key), int | float)), low)
            high = next((float(kwargs[key]) for key in _HIGH if isinstance(kwargs.get(key), int | float)), high)
            low, high = given[0] if given else low, given[1] if len(given) > 1 and name != "threshold" else high
        if low == -math.inf:
            return
        producer, axis = self._producers.get(value, ("activation", 1))
        if axis == 0:
            return
        active = ((value > low) & (value < high)).movedim(axis, -1)
        active = active.reshape(self._num_samples, -1, active.shape[-1]).any(1)
        self.passed.gates[_free(producer, self.passed.gates)] = active

    def _follow(self, args: Sequence[Any], result: Tensor) -> None:
        """What has the shape of a layer's output and is made of it has its units."""
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor.shape == result.shape and tensor in self._producers:
                self._producers[result] = self._producers[tensor]
                return

    def _add(self, weight: Tensor, layer: Layer) -> str:
        """The name of a layer; of one that is called twice the second call is merged into the first."""
        name = self._names.get(id(weight))
        if name is None:
            name = _free(layer.kind, self.passed.layers)
            self.passed.layers[name] = layer
            return name
        name = name.removesuffix(".weight")
        earlier = self.passed.layers.get(name)
        self.passed.layers[name] = layer if earlier is None else _merged([earlier, layer])
        return name


def _merged(layers: Sequence[Layer]) -> Layer:
    """One layer on several sets of samples."""
    first = layers[0]
    lows = [layer.low for layer in layers if layer.low is not None]
    highs = [layer.high for layer in layers if layer.high is not None]
    if not lows or not highs:
        return first
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    return Layer(first.kind, first.weight, first.bias, first.groups, low, high)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if position < len(args) else kwargs.get(name)


def _free(name: str, taken: Mapping[str, object]) -> str:
    """The name, numbered where it is taken."""
    return next(each for each in _numbered(name) if each not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name} ({number})"
        number += 1
