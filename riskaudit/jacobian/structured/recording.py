"""Which calls of a model's forward pass use trainable parameters, and with what activations.

The forward pass runs as it is, on the whole batch, under a ``TorchFunctionMode`` that sees every
function of torch. A function that is given a trainable parameter must be registered, either as a layer
(`layers.registry.LAYERS`: it is recorded with its activations and its output) or as a view (it only
rearranges the parameter, linearly). Thus modules, plain functions, layers called several times and
parameters shared between layers are all one case. Anything else raises `UnsupportedLayer`.

Not every use of a tensor passes through a ``TorchFunctionMode`` (an ``autograd.Function`` or a scripted
function doesn't). Therefore layers compute with copies of the parameters that have no graph, and whatever
else the model makes of a parameter shows as a path from the loss to it: `Recorder.watched`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map

from riskaudit.jacobian.structured.layers.contraction import Contraction
from riskaudit.release.interception import Interception

View: TypeAlias = Callable[[Tensor], Tensor]


class UnsupportedLayer(Exception):  # noqa: N818 - it says what was found, and is an answer as often as an error
    """A use of a parameter that has no contraction; ``parameter`` is its name, None where there is none."""

    def __init__(self, what: str, parameter: str | None = None) -> None:
        super().__init__(what)
        self.what, self.parameter = what, parameter


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


@dataclass(frozen=True)
class Place:
    """Where the samples of a batch are in a tensor: along ``axis``, each taking ``repeats`` entries.

    The entries of a sample lie in ``outer`` runs of one length: [B, T] merged is one run of T per sample,
    [T, B] merged is T runs of 1.
    """

    axis: int
    repeats: int
    outer: int = 1

    def first(self, tensor: Tensor, num_samples: int) -> Tensor:
        """The tensor with its samples along the first axis, [B, ...]; repeats follow where there are any."""
        tensor = tensor.movedim(self.axis, 0)
        if self.repeats == 1:
            return tensor
        runs = torch.unflatten(tensor, 0, (self.outer, num_samples, self.repeats // self.outer))
        return runs.movedim(1, 0).flatten(1, 2)

    def back(self, tensor: Tensor) -> Tensor:
        """Undo `first`."""
        if self.repeats > 1:
            runs = torch.unflatten(tensor, 1, (self.outer, self.repeats // self.outer))
            tensor = runs.movedim(0, 1).flatten(0, 2)
        return tensor.movedim(0, self.axis)

    def entries(self, sample: int, num_samples: int) -> set[int]:
        """The entries of one sample along the axis."""
        run = self.repeats // self.outer
        return {(i * num_samples + sample) * run + k for i in range(self.outer) for k in range(run)}

    def beside(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that remains of a parameter, broadcast against such a tensor, beside one sample.

        Raises:
            UnsupportedLayer: the parameter isn't the same for all samples.
        """
        if shape[self.axis] != 1:
            raise UnsupportedLayer("a parameter that differs between the samples of a batch")
        others = tuple(size for axis, size in enumerate(shape) if axis != self.axis)
        return others if self.repeats == 1 else (1, *others)


# Makes a contraction of factors [B, ...] for the roles asked for; the place is the output's.
Maker: TypeAlias = Callable[[list[Tensor], frozenset[str], Place], Contraction]


@dataclass(frozen=True)
class Call:
    """One use of parameters in the forward pass: activations in, output, parameters by role.

    Of the output only its shape and its place in autograd's graph are kept, which stay what they were when
    the model overwrites it; ``versions`` are the inputs' own when the call was made.
    """

    layer: str
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    output: GradientEdge
    output_shape: torch.Size
    sources: Mapping[str, Source]
    make: Maker

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed an input in place since."""
        return any(tensor._version != before for tensor, before in zip(self.inputs, self.versions, strict=True))


class Recorder(Interception):
    """Records the calls of one forward pass.

    Args:
        parameters: the trainable ones by name, as the model is given them: leaves that require a gradient.
        num_samples: B of the pass.
        decisions: for each use of a parameter that could depend on the batch, whether it does, from an
            earlier pass; None to decide by the sizes.
        marking: also note which entries of the factors are NaN.

    Attributes:
        calls: in order.
        decisions: made in this pass.
        watched: parameters and what they were rearranged into. The loss must not depend on them: all
            dependence that was recorded is cut.
        marks: for each call, where its inputs and its output are NaN.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        num_samples: int,
        decisions: Sequence[bool] | None = None,
        marking: bool = False,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.calls: list[Call] = []
        self.watched = list(parameters.values())
        self.marks: list[list[Tensor]] = []
        self._marking = marking
        self.decisions: list[bool] = []
        self._decided = decisions
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

    def record(self, layer: str, inputs: Iterable[Tensor], output: Tensor, make: Maker, **tensors: object) -> Tensor:
        """Note a call; ``tensors`` are what the layer takes as parameters, by role, trainable or not.

        Returns:
            The output to go on with.
        """
        inputs = tuple(inputs)
        sources = {role: source for role, tensor in tensors.items() if (source := self.source(tensor)) is not None}
        for tensor in inputs:
            found = self.source(tensor)
            if found is not None:
                raise UnsupportedLayer(f"{layer} of two parameters", found.name)
        for given in tensors.values():
            self._unused.pop(id(given), None)
        if not output.requires_grad:
            # It doesn't depend on the audited input, but the loss depends on it.
            output = output.detach().requires_grad_()
        versions = tuple(tensor._version for tensor in inputs)
        self.calls.append(Call(layer, inputs, versions, get_gradient_edge(output), output.shape, sources, make))
        if self._marking:
            self.marks.append([torch.isnan(tensor.detach()) for tensor in (*inputs, output)])
        # A leaf may not be overwritten, which the model may do with its activations.
        return output.clone() if output.is_leaf else output

    def rearranged(self, tensor: Tensor, view: View, value: Tensor | None = None) -> Tensor:
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

    def constant(self, tensor: Tensor) -> Tensor:
        """A tensor that has a source, as a constant: cut out of the graph by the model itself."""
        self._unused.pop(id(tensor), None)
        # Not the tensor itself, which is known to have a source.
        return tensor.detach()

    def follows_batch(self, guess: bool) -> bool:
        """Whether a use of a parameter depends on the batch: the guess, or what the earlier pass decided."""
        number = len(self.decisions)
        known = self._decided is not None and number < len(self._decided)
        self.decisions.append(self._decided[number] if self._decided is not None and known else guess)
        return self.decisions[-1]

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `Interception.call`."""
        from riskaudit.jacobian.structured.layers.registry import LAYERS, OPENED

        source = next((found for leaf in tree_leaves((args, kwargs)) if (found := self.source(leaf))), None)
        # Without a graph the result is a constant, whatever it was made of.
        if source is None or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if function in OPENED:
            with self:
                return OPENED[function](*args, **kwargs)
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
        return tree_map(self._watched, result)

    def _remember(self, tensor: Tensor, source: Source) -> None:
        self._sources[id(tensor)] = source
        self._alive.append(tensor)

    def _without_graph(self, leaf: Any) -> Any:
        """What a layer is given for a tensor: the same values without a graph where it has a source."""
        source = self.source(leaf)
        if source is None:
            return leaf
        quiet: Tensor = leaf.detach()
        self._remember(quiet, source)
        self._originals[id(quiet)] = leaf
        self._unused[id(quiet)] = source
        return quiet

    def _watched(self, leaf: Any) -> Any:
        """What the model is given for a layer's result: watched where it has a source."""
        if id(leaf) in self._originals:
            return self._originals[id(leaf)]
        if self.source(leaf) is not None and not leaf.requires_grad:
            self.watched.append(leaf.requires_grad_())
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


def place_in(small: torch.Size, large: torch.Size, counts: tuple[int, int]) -> Place:
    """Where the batch is, from the shapes of one tensor in passes with two sizes of batch.

    Raises:
        UnsupportedLayer: not along exactly one axis.
    """
    if len(small) == len(large):
        axes = [axis for axis, (one, other) in enumerate(zip(small, large, strict=True)) if one != other]
        if len(axes) == 1 and small[axes[0]] % counts[0] == 0:
            repeats = small[axes[0]] // counts[0]
            if large[axes[0]] == repeats * counts[1]:
                return Place(axes[0], repeats)
    raise UnsupportedLayer("an activation without one axis for the samples of a batch")


def place_by_marks(place: Place, marks: Tensor, sample: int, num_samples: int) -> Place | None:
    """The place again, its runs as the entries that depend on one sample show them.

    Args:
        place: by the shapes alone.
        marks: which entries of the tensor depend on the sample.
        sample: its number in the batch.
        num_samples: B.

    Returns:
        None where no entry depends on it, which tells nothing.

    Raises:
        UnsupportedLayer: other entries than those of one sample depend on it.
    """
    along = marks.movedim(place.axis, 0).flatten(1).any(1) if marks.ndim > 1 else marks
    found = set(along.nonzero().flatten().tolist())
    if not found:
        return None
    divisors = [outer for outer in range(1, place.repeats + 1) if place.repeats % outer == 0]
    places = [Place(place.axis, place.repeats, outer) for outer in divisors]
    exact = [one for one in places if one.entries(sample, num_samples) == found]
    fitting = exact or [one for one in places if one.entries(sample, num_samples) >= found]
    if len(fitting) != 1:
        raise UnsupportedLayer("an activation in which the samples of a batch can't be told apart")
    return fitting[0]
