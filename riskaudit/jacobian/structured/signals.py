"""Phi(x) = (a_l, b_l): activations that enter each layer and back-propagated signals at its output.

Phi is a function of the whole batch that uses ordinary, shared weights. Its graph is built once; J v
starts with DPhi v, by a double vector-Jacobian product whose graph is also built once, and J^T u ends
with DPhi^T. All of it lives in torch's plain autograd: no ``vmap``, no per-sample weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.jacobian.response import pairing_gap
from riskaudit.jacobian.structured.batch_axis import BatchAxis, find_batch_axis, find_runs
from riskaudit.jacobian.structured.contraction import Contraction
from riskaudit.jacobian.structured.recording import Call, Recorder, Source, Statistics
from riskaudit.jacobian.structured.registry import UnsupportedLayer
from riskaudit.release import Batch, Release
from riskaudit.release.shares import batch_loss

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
    inputs: tuple[BatchAxis, ...]
    output: BatchAxis
    front: bool = False


@dataclass(frozen=True)
class Layout:
    """The calls of a model's forward pass, in order, and `Recorder.batch_dependence`."""

    calls: tuple[CallLayout, ...]
    batch_dependence: tuple[bool, ...]


def run(
    release: Release,
    batch: Batch,
    batch_dependence: Sequence[bool] | None,
    record_nans: bool = False,
    changed: Mapping[str, Tensor] | None = None,
    statistics: Statistics = "refused",
) -> tuple[Tensor, Tensor, Recorder]:
    """One recorded forward pass: the inputs (with a graph), the losses [U] of the uploads, and the recorder.

    Args:
        release: the model, its parameters and its loss.
        batch: U uploads.
        batch_dependence: see `Recorder`.
        record_nans: see `Recorder`.
        changed: parameters with other values than the release's.
        statistics: see `Recorder`.

    Raises:
        UnsupportedLayer: a parameter is used in a way that has no contraction.
    """
    inputs = batch.inputs.detach().clone().requires_grad_()
    values = {**release.parameters, **(changed or {})}
    parameters = {name: value.detach().requires_grad_() for name, value in values.items()}
    recorder = Recorder(parameters, len(batch), batch_dependence, record_nans, statistics)
    # Attention's other kernels have no second derivatives.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        with recorder:
            # Not the inputs themselves: a model may overwrite what it is given, but no leaf.
            outputs, added = release.function.run_with_added(parameters, inputs.clone())
        losses = _upload_losses(release, outputs, added, batch)
    return inputs, losses, recorder


def _upload_losses(release: Release, outputs: Tensor, added: Tensor | None, batch: Batch) -> Tensor:
    """What every upload's gradient is one of, [U]: of one sample alone, or of a mini-batch as training computes it."""
    if release.coupling == "joint":
        known = [each for each in (outputs, batch.targets, added) if each is not None]
        uploads = zip(*(torch.split(each, batch.upload_size) for each in known), strict=True)
        return torch.stack([batch_loss(release.loss, *upload) for upload in uploads])
    losses: Tensor = vmap(lambda output, target: release.loss(output.unsqueeze(0), target.unsqueeze(0)).sum())(
        outputs, batch.targets
    )
    return losses if added is None else losses + added


def find_layout(release: Release, batch: Batch, counts: tuple[int, int]) -> Layout:
    """Trace a model twice, with batches of two sizes made of the same samples, to see where samples are.

    A third pass, in which one sample is NaN, shows how samples lie where they are merged with other axes. Where batch
    norm mixes the samples of an upload, its statistics are constants in all passes.

    Raises:
        UnsupportedLayer: see `run`; or the samples can't be found in an activation.
    """
    batches = [_repeated(release, batch, count) for count in counts]
    small = _trace(release, batches[0], None)
    dependence = small.batch_dependence
    large = _trace(release, batches[1], dependence)
    if _outline(small.calls) != _outline(large.calls):
        raise UnsupportedLayer("a model whose layers depend on the size of the batch")
    axes = [
        [find_batch_axis(*shapes, counts) for shapes in zip(_shapes(call), _shapes(larger_call), strict=True)]
        for call, larger_call in zip(small.calls, large.calls, strict=True)
    ]
    nan_masks = _nan_masks(release, batches[0], dependence, small.calls)
    front = _front(release, batches[0], dependence, small.calls)
    calls = []
    for call, call_axes, masks, is_front in zip(small.calls, axes, nan_masks, front, strict=True):
        *inputs, output = _with_runs(call_axes, masks, counts[0])
        calls.append(CallLayout(call.layer, _names(call), tuple(inputs), output, is_front))
    return Layout(tuple(calls), tuple(dependence))


def _repeated(release: Release, batch: Batch, count: int) -> Batch:
    """So many samples out of a batch, as one upload where samples leave together."""
    samples = Batch(batch.inputs, batch.targets).select([k % len(batch) for k in range(count)])
    return samples if release.coupling == "per_sample" else replace(samples, upload_size=count)


def _constant_statistics(release: Release) -> Statistics:
    return "refused" if release.coupling == "per_sample" else "constant"


def _trace(release: Release, batch: Batch, batch_dependence: Sequence[bool] | None) -> Recorder:
    """One pass, without its graph.

    Raises:
        UnsupportedLayer: see `run`; or the loss depends on a parameter otherwise than by recorded calls.
    """
    _, losses, recorder = run(release, batch, batch_dependence, statistics=_constant_statistics(release))
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
    sought: list[Any] = [*edges, *recorder.cut_parameters]
    gradients = torch.autograd.grad(losses.sum(), sought, create_graph=create_graph, allow_unused=True)
    for tensor, unrecorded in zip(recorder.cut_parameters, gradients[len(edges) :], strict=True):
        source = recorder.source(tensor)
        if unrecorded is not None and source is not None:
            raise UnsupportedLayer("a function that torch doesn't let be observed", source.name)
    return gradients[: len(edges)]


def _nan_masks(
    release: Release, batch: Batch, batch_dependence: Sequence[bool], calls: list[Call]
) -> list[list[Tensor] | None]:
    """For each call, which entries of its factors depend on one sample; None where that can't be told."""
    inputs, statistics = batch.inputs.clone(), _constant_statistics(release)
    inputs[MARKED_SAMPLE] = torch.nan
    try:
        _, _, recorder = run(release, batch.with_inputs(inputs), batch_dependence, True, statistics=statistics)
    except Exception:  # third-party code may raise anything, at NaN above all
        return [None] * len(calls)
    if _outline(recorder.calls) != _outline(calls):
        raise UnsupportedLayer("a model whose layers depend on its input")
    return list(recorder.nan_masks)


def _front(release: Release, batch: Batch, batch_dependence: Sequence[bool], calls: list[Call]) -> list[bool]:
    """For each call, whether what enters it stays the same whatever the weights of layers with a matrix are."""
    first_only = [number == 0 for number in range(len(calls))]
    names = {source.name for call in calls if call.layer.startswith(MIXING) for source in call.sources.values()}
    changed = {name: CHANGED_SCALE * release.parameters[name] + CHANGED_SHIFT for name in names}
    try:
        _, _, recorder = run(
            release, batch, batch_dependence, changed=changed, statistics=_constant_statistics(release)
        )
    except Exception:  # third-party code may raise anything, at other weights above all
        return first_only
    if _outline(recorder.calls) != _outline(calls):
        return first_only
    return [
        all(torch.equal(*pair) for pair in zip(call.inputs, other.inputs, strict=True))
        for call, other in zip(calls, recorder.calls, strict=True)
    ]


def _with_runs(axes: list[BatchAxis], nan_masks: list[Tensor] | None, num_samples: int) -> list[BatchAxis]:
    """The batch axes of one call's factors, with the runs of merged samples.

    Raises:
        UnsupportedLayer: samples mix, or it can't be told how they are merged.
    """
    with_runs: list[BatchAxis | None] = [None] * len(axes)
    if nan_masks is not None:
        pairs = zip(axes, nan_masks, strict=True)
        with_runs = [find_runs(axis, mask, MARKED_SAMPLE, num_samples) for axis, mask in pairs]
    resolved = []
    for axis, observed in zip(axes, with_runs, strict=True):
        # Factors of one call are merged alike; a constant one shows nothing itself.
        alike = [other for other in with_runs if other and (other.dim, other.repeats) == (axis.dim, axis.repeats)]
        if observed is None and axis.repeats > 1 and not alike:
            raise UnsupportedLayer("an activation in which the samples of a batch can't be told apart")
        resolved.append(observed or (alike[0] if axis.repeats > 1 else axis))
    return resolved


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
    axes: tuple[BatchAxis, ...]
    factors: tuple[int, ...]
    front: bool = False


class Signals:
    """Phi at a batch, with its derivative and the transpose of that.

    The B samples that contractions tell apart are uploads: where several samples leave together, they are positions of
    one.

    Args:
        release: the model, its parameters and its loss, by uploads.
        batch: B uploads; one only where batch norm mixes the samples of a batch.
        layout: of this model.
        differentiable: keep what derivatives of Phi need.

    Raises:
        UnsupportedLayer: the pass differs from the layout.
    """

    def __init__(self, release: Release, batch: Batch, layout: Layout, differentiable: bool = True) -> None:
        self.num_samples = batch.num_uploads
        statistics: Statistics = "refused" if release.coupling == "per_sample" else "batch"
        self.inputs, losses, recorder = run(release, batch, layout.batch_dependence, statistics=statistics)
        if [(call.layer, call.sources) for call in layout.calls] != _outline(recorder.calls):
            raise UnsupportedLayer("a model whose layers depend on the batch")
        self.losses = losses.detach()
        signals = _signals(losses, recorder, create_graph=differentiable)
        # Parts of Phi; one activation may enter several layers.
        self.parts: list[Tensor] = []
        positions: dict[int, int] = {}
        self.calls: list[BoundCall] = []
        for call, call_layout, signal in zip(recorder.calls, layout.calls, signals, strict=True):
            if signal is None:
                continue  # the loss doesn't depend on it, so it adds nothing to the gradient
            factors = [*call.inputs, signal]
            axes = tuple(axis.of_uploads(batch.upload_size) for axis in (*call_layout.inputs, call_layout.output))
            for factor in factors:
                if id(factor) not in positions:
                    positions[id(factor)] = len(self.parts)
                    self.parts.append(factor)
            pairs = zip(factors, axes, strict=True)
            values = [axis.samples_first(factor.detach(), self.num_samples) for factor, axis in pairs]
            contraction = call.make(values, frozenset(call.sources), axes[-1])
            numbers = tuple(positions[id(factor)] for factor in factors)
            self.calls.append(BoundCall(contraction, call.sources, axes, numbers, call_layout.front))
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
        """DPhi v for v in the shape of the inputs: a tangent per part."""
        cotangents, pulled = self._pushing
        tangents: list[Tensor | None] = [None] * len(self.parts)
        if pulled is not None and pulled.requires_grad:
            values = torch.autograd.grad(pulled, cotangents, tangent, retain_graph=True, allow_unused=True)
            for position, value in zip(self._varying, values, strict=True):
                tangents[position] = value
        pairs = zip(self.parts, tangents, strict=True)
        return [torch.zeros_like(part) if value is None else value for part, value in pairs]

    def pull(self, cotangents: Sequence[Tensor | None]) -> Tensor:
        """DPhi^T of a cotangent per part; returns it in the shape of the inputs."""
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
            tangent: v, in the shape of the inputs.
            pushed: DPhi v, as `push` gives it.
            draw: u, random numbers of mean 0 and variance 1 like a tensor's.
        """
        cotangents = [draw(part) for part in self.parts]
        pulled = (self.pull(cotangents) * tangent).reshape(self.num_samples, -1)
        paired = torch.cat(
            [
                axis.samples_first(cotangents[position] * pushed[position], self.num_samples).flatten(1)
                for position, axis in self._axes.items()
            ],
            dim=1,
        )
        return pairing_gap(paired, pulled)

    @property
    def _axes(self) -> dict[int, BatchAxis]:
        """The batch axis of each part."""
        return {position: axis for call in self.calls for position, axis in zip(call.factors, call.axes, strict=True)}
