"""Phi(x) = (a_l, b_l): activations that enter each layer and back-propagated signals at its output.

Phi is a function of the whole batch that uses ordinary, shared weights. Its graph is built once; J v
starts with DPhi v, by a double vector-Jacobian product whose graph is also built once, and J^T u ends
with DPhi^T. All of it lives in torch's plain autograd: no ``vmap``, no per-sample weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.jacobian.response import pairing_gap
from riskaudit.jacobian.structured.layers.contraction import Contraction
from riskaudit.jacobian.structured.recording import (
    Call,
    Place,
    Recorder,
    Source,
    UnsupportedLayer,
    place_by_marks,
    place_in,
)
from riskaudit.release import Batch, Release

# The sample that is NaN in the third pass of a trace: neither the first nor the last.
MARKED_SAMPLE = 1
# What the weights of other layers are changed to, to see where they have a part.
CHANGED_SCALE, CHANGED_SHIFT = 1.25, 0.1
# Beginnings of the names of layers that mix entries with their weights; all others work entry by entry.
MIXING = ("Linear", "Bilinear", "Conv", "Embedding")


@dataclass(frozen=True)
class CallLayout:
    """What is the same for every batch of one call: its layer, its parameters, and where the samples are.

    ``front`` says that no other layer's weights have a part in what enters it.
    """

    layer: str
    sources: tuple[tuple[str, str], ...]
    inputs: tuple[Place, ...]
    output: Place
    front: bool = False


@dataclass(frozen=True)
class Layout:
    """The calls of a model's forward pass, in order, and the decisions that `Recorder` made."""

    calls: tuple[CallLayout, ...]
    decisions: tuple[bool, ...]


def run(
    release: Release,
    batch: Batch,
    decisions: Sequence[bool] | None,
    marking: bool = False,
    changed: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Recorder]:
    """One recorded forward pass: the inputs (with a graph), the losses [B], and the recorder.

    Args:
        release: the model, its parameters and its loss.
        batch: the samples.
        decisions: see `Recorder`.
        marking: see `Recorder`.
        changed: parameters with other values than the release's.

    Raises:
        UnsupportedLayer: a parameter is used in a way that has no contraction.
    """
    inputs = batch.inputs.detach().clone().requires_grad_()
    values = {**release.parameters, **(changed or {})}
    parameters = {name: value.detach().requires_grad_() for name, value in values.items()}
    recorder = Recorder(parameters, len(batch), decisions, marking)
    # Attention's other kernels have no second derivatives.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        with recorder:
            # Not the inputs themselves: a model may overwrite what it is given, but no leaf.
            outputs = release.run(parameters, inputs.clone())
        losses: Tensor = vmap(lambda output, target: release.loss(output.unsqueeze(0), target.unsqueeze(0)).sum())(
            outputs, batch.targets
        )
    return inputs, losses, recorder


def find_layout(release: Release, batch: Batch, counts: tuple[int, int]) -> Layout:
    """Trace a model twice, with batches of two sizes made of the same samples, to see where samples are.

    A third pass, in which one sample is NaN, shows how samples lie where they are merged with other axes.

    Raises:
        UnsupportedLayer: see `run`; or the samples can't be found in an activation.
    """
    batches = [batch.select([k % len(batch) for k in range(count)]) for count in counts]
    small = _trace(release, batches[0], None)
    decisions = small.decisions
    large = _trace(release, batches[1], decisions)
    if _outline(small.calls) != _outline(large.calls):
        raise UnsupportedLayer("a model whose layers depend on the size of the batch")
    places = [
        [place_in(a, b, counts) for a, b in zip(_shapes(one), _shapes(other), strict=True)]
        for one, other in zip(small.calls, large.calls, strict=True)
    ]
    marks = _marks(release, batches[0], decisions, small.calls)
    front = _front(release, batches[0], decisions, small.calls)
    calls = []
    for call, by_shape, marked, first in zip(small.calls, places, marks, front, strict=True):
        *inputs, output = _told_apart(by_shape, marked, counts[0])
        calls.append(CallLayout(call.layer, _names(call), tuple(inputs), output, first))
    return Layout(tuple(calls), tuple(decisions))


def _trace(release: Release, batch: Batch, decisions: Sequence[bool] | None) -> Recorder:
    """One pass, without its graph.

    Raises:
        UnsupportedLayer: see `run`; or the loss depends on a parameter otherwise than by recorded calls.
    """
    _, losses, recorder = run(release, batch, decisions)
    _signals(losses, recorder, create_graph=False)
    return recorder


def _signals(losses: Tensor, recorder: Recorder, create_graph: bool) -> tuple[Tensor | None, ...]:
    """Back-propagated signals at the outputs of all calls, None where the loss doesn't depend on one.

    Raises:
        UnsupportedLayer: the loss depends on a parameter otherwise than by recorded calls, or what entered
            a call is lost.
    """
    for call in recorder.calls:
        if call.overwritten:
            raise UnsupportedLayer(f"{call.layer} whose input is overwritten", next(iter(call.sources.values())).name)
    edges = [call.output for call in recorder.calls]
    if not losses.requires_grad:
        return (None,) * len(edges)
    sought: list[Any] = [*edges, *recorder.watched]
    found = torch.autograd.grad(losses.sum(), sought, create_graph=create_graph, allow_unused=True)
    for tensor, unseen in zip(recorder.watched, found[len(edges) :], strict=True):
        source = recorder.source(tensor)
        if unseen is not None and source is not None:
            raise UnsupportedLayer("a function that torch doesn't let be observed", source.name)
    return found[: len(edges)]


def _marks(release: Release, batch: Batch, decisions: Sequence[bool], calls: list[Call]) -> list[list[Tensor] | None]:
    """For each call, which entries of its factors depend on one sample; None where that can't be told."""
    inputs = batch.inputs.clone()
    inputs[MARKED_SAMPLE] = torch.nan
    try:
        _, _, recorder = run(release, Batch(inputs, batch.targets), decisions, marking=True)
    except Exception:  # the model may be anybody's code, and may take numbers only
        return [None] * len(calls)
    if _outline(recorder.calls) != _outline(calls):
        raise UnsupportedLayer("a model whose layers depend on its input")
    return list(recorder.marks)


def _front(release: Release, batch: Batch, decisions: Sequence[bool], calls: list[Call]) -> list[bool]:
    """For each call, whether what enters it stays the same whatever the weights of layers with a matrix are."""
    names = {source.name for call in calls if call.layer.startswith(MIXING) for source in call.sources.values()}
    changed = {name: CHANGED_SCALE * release.parameters[name] + CHANGED_SHIFT for name in names}
    try:
        _, _, recorder = run(release, batch, decisions, changed=changed)
    except Exception:  # the model may be anybody's code, and may refuse such weights
        return [not place for place in range(len(calls))]
    if _outline(recorder.calls) != _outline(calls):
        return [not place for place in range(len(calls))]
    return [
        all(torch.equal(*pair) for pair in zip(call.inputs, other.inputs, strict=True))
        for call, other in zip(calls, recorder.calls, strict=True)
    ]


def _told_apart(places: list[Place], marks: list[Tensor] | None, num_samples: int) -> list[Place]:
    """The places of one call's factors, with the runs of merged samples.

    Raises:
        UnsupportedLayer: samples mix, or it can't be told how they are merged.
    """
    found: list[Place | None] = [None] * len(places)
    if marks is not None:
        found = [
            place_by_marks(place, marked, MARKED_SAMPLE, num_samples)
            for place, marked in zip(places, marks, strict=True)
        ]
    known = [place for place in found if place is not None]
    told = []
    for place, own in zip(places, found, strict=True):
        # Factors of one call are merged alike; a constant one shows nothing itself.
        like = [other for other in known if (other.axis, other.repeats) == (place.axis, place.repeats)]
        if own is None and place.repeats > 1 and not like:
            raise UnsupportedLayer("an activation in which the samples of a batch can't be told apart")
        told.append(own or (like[0] if place.repeats > 1 else place))
    return told


def _shapes(call: Call) -> list[torch.Size]:
    return [*(tensor.shape for tensor in call.inputs), call.output_shape]


def _outline(calls: Sequence[Call]) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    return [(call.layer, _names(call)) for call in calls]


def _names(call: Call) -> tuple[tuple[str, str], ...]:
    return tuple((role, source.name) for role, source in call.sources.items())


@dataclass(frozen=True)
class BoundCall:
    """A call at a batch: its contraction, and the positions of its factors in Phi."""

    contraction: Contraction
    sources: Mapping[str, Source]
    places: tuple[Place, ...]
    factors: tuple[int, ...]
    front: bool = False


class Signals:
    """Phi at a batch, with its derivative and the transpose of that.

    Args:
        release: the model, its parameters and its loss.
        batch: B samples.
        layout: of this model.
        differentiable: keep what derivatives of Phi need.

    Raises:
        UnsupportedLayer: the pass differs from the layout.
    """

    def __init__(self, release: Release, batch: Batch, layout: Layout, differentiable: bool = True) -> None:
        self.num_samples = len(batch)
        self.inputs, losses, recorder = run(release, batch, layout.decisions)
        if [(call.layer, call.sources) for call in layout.calls] != _outline(recorder.calls):
            raise UnsupportedLayer("a model whose layers depend on the batch")
        calls = recorder.calls
        self.losses = losses.detach()
        signals = _signals(losses, recorder, create_graph=differentiable)
        # A call that the loss doesn't depend on adds nothing to the gradient.
        used = [
            (call, place, signal)
            for call, place, signal in zip(calls, layout.calls, signals, strict=True)
            if signal is not None
        ]
        # Parts of Phi; one activation may enter several layers.
        self.parts: list[Tensor] = []
        positions: dict[int, int] = {}
        self.calls: list[BoundCall] = []
        for call, where, signal in used:
            factors, places = [*call.inputs, signal], (*where.inputs, where.output)
            for factor in factors:
                if id(factor) not in positions:
                    positions[id(factor)] = len(self.parts)
                    self.parts.append(factor)
            values = [
                place.first(factor.detach(), self.num_samples) for factor, place in zip(factors, places, strict=True)
            ]
            contraction = call.make(values, frozenset(call.sources), where.output)
            self.calls.append(
                BoundCall(
                    contraction, call.sources, places, tuple(positions[id(each)] for each in factors), where.front
                )
            )
        # Parts that are constant around the batch have no tangent.
        self._varying = [position for position, part in enumerate(self.parts) if part.requires_grad]
        self._varying_parts = [self.parts[position] for position in self._varying]

    @cached_property
    def _pushing(self) -> tuple[list[Tensor], Tensor | None]:
        """Dummy cotangents w and DPhi^T w, whose graph in w is DPhi."""
        cotangents = [torch.zeros_like(part, requires_grad=True) for part in self._varying_parts]
        if not cotangents:
            return [], None
        (pulled,) = torch.autograd.grad(
            self._varying_parts, self.inputs, cotangents, create_graph=True, allow_unused=True
        )
        return cotangents, pulled

    def push(self, tangent: Tensor) -> list[Tensor]:
        """DPhi v for v [B, *S]: a tangent per part."""
        cotangents, pulled = self._pushing
        found: list[Tensor | None] = [None] * len(self.parts)
        if pulled is not None and pulled.requires_grad:
            tangents = torch.autograd.grad(pulled, cotangents, tangent, retain_graph=True, allow_unused=True)
            for position, value in zip(self._varying, tangents, strict=True):
                found[position] = value
        return [
            torch.zeros_like(part) if value is None else value for part, value in zip(self.parts, found, strict=True)
        ]

    def pull(self, cotangents: Sequence[Tensor | None]) -> Tensor:
        """DPhi^T of a cotangent per part; returns [B, *S]."""
        pairs = [
            (self.parts[position], cotangents[position])
            for position in self._varying
            if cotangents[position] is not None
        ]
        if not pairs:
            return torch.zeros_like(self.inputs)
        parts, given = zip(*pairs, strict=True)
        (pulled,) = torch.autograd.grad(parts, self.inputs, given, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self.inputs) if pulled is None else pulled

    def adjoint_gap(self, tangent: Tensor, pushed: Sequence[Tensor], draw: Callable[[Tensor], Tensor]) -> Tensor:
        """|<u, DPhi v> - <DPhi^T u, v>| relative to the typical size of either, [B].

        Args:
            tangent: v, [B, ...].
            pushed: DPhi v, as `push` gives it.
            draw: u, random numbers of mean 0 and variance 1 like a tensor's.
        """
        cotangents = [draw(part) for part in self.parts]
        pulled = (self.pull(cotangents) * tangent).flatten(1)
        paired = torch.cat(
            [
                place.first(cotangents[position] * pushed[position], self.num_samples).flatten(1)
                for position, place in self._places.items()
            ],
            dim=1,
        )
        return pairing_gap(paired, pulled)

    @property
    def _places(self) -> dict[int, Place]:
        """Where samples are in each part."""
        return {
            position: place for call in self.calls for position, place in zip(call.factors, call.places, strict=True)
        }
