"""Which calls of a model's forward pass use trainable parameters, and with what activations.

The forward pass runs as it is, on the whole batch, under a ``TorchFunctionMode`` that sees every
function of torch. A function that is given a trainable parameter must be registered, either as a layer
(`registry.LAYERS`: it is recorded with its activations and its output) or as a view (it only
rearranges the parameter, linearly). Thus modules, plain functions, layers called several times and
parameters shared between layers are all one case. Anything else raises `UnsupportedLayer`.

Not every use of a tensor passes through a ``TorchFunctionMode`` (an ``autograd.Function`` or a scripted
function doesn't). Therefore layers compute with copies of the parameters that have no graph, and whatever
else the model makes of a parameter shows as a path from the loss to it: `Recorder.cut_parameters`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from riskaudit.jacobian.structured.batch_axis import BatchAxis
from riskaudit.jacobian.structured.contraction import Contraction
from riskaudit.jacobian.structured.registry import BATCH_LAYERS, COMPOSITES, LAYERS, SMOOTH, UnsupportedLayer
from riskaudit.release.interception import Interception

# Batch norm with the statistics of the batch is refused; or its statistics are constants; or they are the batch's.
Statistics: TypeAlias = Literal["refused", "constant", "batch"]
View: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """A tensor that a parameter was rearranged into: the parameter's name and the linear views, in order."""

    name: str
    views: tuple[View, ...] = ()

    def __call__(self, parameter: Tensor) -> Tensor:
        """Rearrange a tensor of the parameter's shape likewise."""
        for view in self.views:
            parameter = view(parameter)
        return parameter


# Makes a contraction of factors [B, ...] for the roles asked for; the axis is the output's.
MakeContraction: TypeAlias = Callable[[list[Tensor], frozenset[str], BatchAxis], Contraction]


@dataclass(frozen=True)
class Call:
    """One use of parameters in the forward pass: activations in, output, parameters by role.

    Of the output only its shape and its edge in autograd's graph are stored, which stay what they were when
    the model overwrites it; ``versions`` are those of the inputs when the call was made.
    """

    layer: str
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    output: GradientEdge
    output_shape: torch.Size
    sources: Mapping[str, Source]
    make: MakeContraction

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed an input in place since."""
        return any(tensor._version != before for tensor, before in zip(self.inputs, self.versions, strict=True))


class Recorder(Interception):
    """Records the calls of one forward pass.

    Args:
        parameters: the trainable ones by name, as the model is given them: leaves that require a gradient.
        num_samples: B of the pass.
        batch_dependence: for each use of a parameter that could depend on the batch, whether it does, from
            an earlier pass; None to decide by the sizes.
        record_nans: also note which entries of the factors are NaN.
        statistics: what becomes of batch norm with the statistics of the batch.

    Attributes:
        calls: in order.
        batch_dependence: what was decided in this pass.
        cut_parameters: parameters and what they were rearranged into. The loss must not depend on them: all
            dependence that was recorded is cut.
        nan_masks: for each call, where its inputs and its output are NaN.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        num_samples: int,
        batch_dependence: Sequence[bool] | None = None,
        record_nans: bool = False,
        statistics: Statistics = "refused",
    ) -> None:
        super().__init__()
        self.num_samples, self.statistics = num_samples, statistics
        self.calls: list[Call] = []
        self.cut_parameters = list(parameters.values())
        self.nan_masks: list[list[Tensor]] = []
        self._record_nans = record_nans
        self.batch_dependence: list[bool] = []
        self._decided = batch_dependence or []
        self._sources = {id(tensor): Source(name) for name, tensor in parameters.items()}
        # Tensors without a graph that layers are given instead, by identity.
        self._originals: dict[int, Tensor] = {}
        # Tensors of the current call that have a source and weren't looked at yet.
        self._unused: dict[int, Source] = {}
        # Identities stay unique only while their tensors live.
        self._alive: list[Tensor] = []

    def source(self, tensor: object) -> Source | None:
        """What parameter a tensor is or was rearranged from, if any."""
        return self._sources.get(id(tensor))

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of the parameter that a tensor is or was rearranged from, if any."""
        source = self.source(tensor)
        return None if source is None else source.name

    def record_call(
        self, layer: str, inputs: Iterable[Tensor], output: Tensor, make: MakeContraction, **tensors: object
    ) -> Tensor:
        """Record a call; ``tensors`` are what the layer takes as parameters, by role, trainable or not.

        Returns:
            The output to go on with.
        """
        inputs = tuple(inputs)
        sources = {role: source for role, tensor in tensors.items() if (source := self.source(tensor)) is not None}
        for tensor in inputs:
            if (source := self.source(tensor)) is not None:
                raise UnsupportedLayer(f"{layer} of two parameters", source.name)
        for given in tensors.values():
            self._unused.pop(id(given), None)
        if not output.requires_grad:
            # It doesn't depend on the audited input, but the loss depends on it.
            output = output.detach().requires_grad_()
        elif output._is_view():
            # Its edge would leave the graph where the model overwrites it, as activations in place do.
            output = output.clone()
        versions = tuple(tensor._version for tensor in inputs)
        self.calls.append(Call(layer, inputs, versions, get_gradient_edge(output), output.shape, sources, make))
        if self._record_nans:
            self.nan_masks.append([torch.isnan(tensor.detach()) for tensor in (*inputs, output)])
        # A leaf may not be overwritten, which the model may do with its activations.
        return output.clone() if output.is_leaf else output

    def record_view(self, tensor: Tensor, view: View, value: Tensor | None = None) -> Tensor:
        """Apply a linear view to a tensor that has a source, and remember where it came from.

        Args:
            tensor: the tensor.
            view: how tangents of it are rearranged.
            value: the result where it isn't ``view(tensor)``: for a view plus a constant.
        """
        source = self._sources[id(tensor)]
        self._unused.pop(id(tensor), None)
        result = view(tensor) if value is None else value
        # An operation may return its argument itself.
        if result is not tensor:
            self._remember(result, Source(source.name, (*source.views, view)))
        return result

    def record_detached(self, tensor: Tensor) -> Tensor:
        """A tensor that has a source, as a constant: cut out of the graph by the model itself."""
        self._unused.pop(id(tensor), None)
        # Not the tensor itself, which is known to have a source.
        return tensor.detach()

    def depends_on_batch(self, guess: bool) -> bool:
        """Whether a use of a parameter depends on the batch: the guess, or what the earlier pass decided."""
        number = len(self.batch_dependence)
        self.batch_dependence.append(self._decided[number] if number < len(self._decided) else guess)
        return self.batch_dependence[-1]

    @override
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        sources = (self.source(leaf) for leaf in tree_leaves((args, kwargs)))
        source = next(filter(None, sources), None)
        # Without a graph the result is a constant, whatever it was made of.
        if source is None or not torch.is_grad_enabled():
            if function in BATCH_LAYERS and self.statistics != "refused":
                return BATCH_LAYERS[function](self, *args, **kwargs)
            smooth = SMOOTH.get(function, function) if torch.is_grad_enabled() else function
            return smooth(*args, **kwargs)
        if function in COMPOSITES:
            with self:
                return COMPOSITES[function](*args, **kwargs)
        name = getattr(function, "__name__", str(function))
        layer = LAYERS.get(function)
        if layer is None:
            result = function(*args, **kwargs)
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
                raise UnsupportedLayer(name, source.name)
            return result
        self._unused = {}
        args, kwargs = tree_map(self._without_graph, (args, kwargs))
        if not _takes(layer, args, kwargs):
            raise UnsupportedLayer(f"{name} with these arguments", source.name)
        result = layer(self, *args, **kwargs)
        for unused in self._unused.values():
            raise UnsupportedLayer(f"{name} of several parameters", unused.name)
        return tree_map(self._cut, result)

    def _remember(self, tensor: Tensor, source: Source) -> None:
        self._sources[id(tensor)] = source
        self._alive.append(tensor)

    def _without_graph(self, leaf: Any) -> Any:
        """What a layer is given for a tensor: the same values without a graph where it has a source."""
        source = self.source(leaf)
        if source is None:
            return leaf
        detached: Tensor = leaf.detach()
        self._remember(detached, source)
        self._originals[id(detached)] = leaf
        self._unused[id(detached)] = source
        return detached

    def _cut(self, leaf: Any) -> Any:
        """What the model is given for a layer's result: cut where it has a source."""
        if id(leaf) in self._originals:
            return self._originals[id(leaf)]
        if self.source(leaf) is not None and not leaf.requires_grad:
            self.cut_parameters.append(leaf.requires_grad_())
        return leaf


def _takes(layer: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer has these arguments: others of its function's are not known to it."""
    try:
        _signature(layer).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


@cache
def _signature(layer: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(layer)
