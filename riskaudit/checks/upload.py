"""One upload as checks see it: what leaves, by parameter, and the truth that only the auditor has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from riskaudit.attacks import Observation
from riskaudit.attacks.linear_layers import coordinatewise_map, own_parameter
from riskaudit.jacobian import Jacobian, JacobianFactory
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.priors import Prior
from riskaudit.release import Batch, Release
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.share import Share
from riskaudit.tables import TableEncoding

# A recovered vector is the truth where no coordinate is further off than this part of the largest one; in single
# precision, for models that can't be run in double, the other.
AGREEMENT, SINGLE_AGREEMENT = 1e-6, 1e-3
# Signals below this many roundings of the layer's largest are rounding.
NEGLIGIBLE = 1e5


@dataclass(frozen=True, eq=False)
class InputMap:
    """A layer's input is scale x + shift, coordinate by coordinate, of the model's input x; [d] each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class FullyConnected:
    """A fully connected layer y = W a + b that the model calls once, and what leaves of its gradient.

    Attributes:
        name: in the model.
        inputs: a of every row, [R, features]: a row per sample, or per sample and position of a sequence.
        outputs: y, [N, ..., width].
        owners: position in the upload of every row's sample, [R].
        weight: what leaves for W, [width, features], up to a factor; None where it doesn't leave as it is.
        bias: likewise for b, [width].
        input_map: how a is made of the model's input; None where it is more than scaled and shifted.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    owners: Tensor
    weight: Tensor | None
    bias: Tensor | None
    input_map: InputMap | None


@final
@dataclass(frozen=True, eq=False)
class SentUpload:
    """One upload, n samples.

    Attributes:
        observation: of this upload alone (B = 1), labels unknown, with its noise.
        mean: what leaves before noise, [P'].
        batch: the truth, one upload.
        tolerable_rmse: error per input coordinate from which on nothing counts as recovered.
        input_maps: by name, of layers that see the model's input but for a scale and a shift (`map_inputs`).
        sends_buffers: whether running statistics leave beside it, as in a state dict that is sent whole.
        encoding: of a table, which inputs belong to which column; None for other inputs.
    """

    observation: Observation
    mean: Tensor
    batch: Batch
    tolerable_rmse: float
    input_maps: Mapping[str, InputMap]
    sends_buffers: bool = True
    encoding: TableEncoding | None = None

    @property
    def release(self) -> Release:
        """How it was made."""
        return self.observation.release

    @property
    def noise_std(self) -> float:
        """Per entry that leaves; 0 without noise. That of the Gaussian noise with the same Fisher information."""
        return 0.0 if self.release.noise is None else self.release.noise.fisher_std

    @property
    def agreement(self) -> float:
        """Relative error up to which what is recovered is the truth."""
        return AGREEMENT if self.mean.dtype == torch.float64 else SINGLE_AGREEMENT

    @property
    def negligible(self) -> float:
        """Part of a layer's largest signal below which one is rounding."""
        return NEGLIGIBLE * torch.finfo(self.mean.dtype).eps

    @property
    def removes_entries(self) -> bool:
        """Whether steps may set single entries to 0."""
        return any(not isinstance(step, Clip | Share) for step in self.release.spec.all_steps)

    @property
    def sums_gradients(self) -> bool:
        """Whether what leaves is a sum of multiples of gradients; steps of Adam aren't."""
        training = self.release.training if isinstance(self.release, LocalTrainingRelease) else None
        return training is None or training.optimizer == "sgd"

    @property
    def sees_weights_change(self) -> bool:
        """Whether gradients of several weights are added up, so that features aren't the same in all of them."""
        return isinstance(self.release, LocalTrainingRelease) and (
            len(self.release.training.mini_batches(len(self.batch) // self.release.spec.num_clients)) > 1
        )

    @cached_property
    def entries(self) -> dict[str, Tensor]:
        """What leaves before noise, by parameter, in its shape; parameters that aren't shared are missing.

        The shrinkage of weights by weight decay, which the server knows as well, is undone.
        """
        shrunk, sent = _shrinkage(self.release, len(self.batch)), self.release.sent
        return {
            name: part.reshape(sent.shapes[name]) - shrunk * self.release.parameters[name]
            for name, part in sent.split(self.mean).items()
        }

    @cached_property
    def outputs(self) -> Tensor:
        """The model's, for all samples together, [n, ...]."""
        with torch.no_grad():
            return self.release.run(self.release.parameters, self.batch.inputs)

    @cached_property
    def fully_connected(self) -> list[FullyConnected]:
        """In the order of their calls."""
        calls = record_calls(self.release, self.batch.inputs, nn.Linear)
        layers = []
        for name, (layer, inputs, outputs) in calls.items():
            rows = inputs.flatten(0, -2)
            owners = torch.arange(len(inputs), device=rows.device).repeat_interleave(len(rows) // len(inputs))
            weight, bias = (self._entries_of(name, layer, role) for role in ("weight", "bias"))
            layers.append(FullyConnected(name, rows, outputs, owners, weight, bias, self.input_maps.get(name)))
        return layers

    @cached_property
    def unread_matrices(self) -> list[str]:
        """Parameters that leave, and that may multiply what no check on fully connected layers looks at; by name.

        Of layers that are called several times or by other means than their ``forward``, of tied weights, of programs
        that hold no layers; and of convolutions with one output position, which are fully connected.
        """
        model = self.release.model
        called = [layer for layer, _, _ in record_calls(self.release, self.batch.inputs, nn.Linear).values()]
        convolutions = record_calls(self.release, self.batch.inputs, _ConvNd).values()
        known = [*called, *(module for module in model.modules() if isinstance(module, nn.Embedding | nn.LayerNorm))]
        read = {own_parameter(model, layer, "weight") for layer in known}
        whole = {
            own_parameter(model, layer, "weight") for layer, _, output in convolutions if output[0, 0].numel() == 1
        }
        return [
            name
            for name, entries in self.entries.items()
            if name not in read and (entries.ndim == 2 or name in whole) and bool(entries.any())
        ]

    def by_threshold(self, layer: FullyConnected) -> Tensor:
        """Units in the order in which they become active along the rows' common direction, [width]."""
        module = self.release.model.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        rows = module.weight.detach()
        biases = rows.new_zeros(len(rows)) if module.bias is None else module.bias.detach()
        direction = rows[rows.norm(dim=1).argmax()]
        lengths = rows @ direction / direction.norm().clamp_min(torch.finfo(rows.dtype).tiny)
        return (biases / torch.where(lengths == 0, 1.0, lengths)).argsort()

    def tolerable_feature_rmse(self, features: Tensor) -> float:
        """Error from which on features [R, a] don't count as recovered: half their spread over samples."""
        return 0.5 * float(features.std()) if features.numel() > 1 else 0.0

    def entries_of(self, name: str) -> Tensor | None:
        """What leaves of a parameter by its name in the model; None where it doesn't."""
        return self.entries.get(name)

    def _entries_of(self, name: str, layer: nn.Module, role: str) -> Tensor | None:
        parameter = own_parameter(self.release.model, layer, role)
        return None if parameter is None else self.entries_of(parameter)


def map_inputs(release: Release, shape: tuple[int, ...]) -> dict[str, InputMap]:
    """Of the fully connected layers that see the model's input [*S] but for a scale and a shift, by name."""
    if any(isinstance(layer, nn.Embedding) for layer in release.model.modules()):
        return {}  # inputs are numbers of tokens, which have no scale
    drawn = torch.randn(2, prod(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = torch.cat([torch.zeros(1, prod(shape)), torch.ones(1, prod(shape)), drawn])
    points = points.to(device=release.device, dtype=release.dtype)
    maps = {}
    for name, (_, inputs, _) in record_calls(release, points.reshape(-1, *shape), nn.Linear).items():
        pair = coordinatewise_map(points, inputs)
        if pair is not None:
            maps[name] = InputMap(*pair)
    return maps


@final
@dataclass(frozen=True, eq=False)
class UploadChecker:
    """Makes uploads of one release ready to be checked.

    Args:
        release: in float64 where its model can be run so.
        prior: what an attacker knows of inputs.
        tolerable_rmse: see `SentUpload`.
        input_shape: *S.
        input_range: least and greatest value of an input coordinate, where known.
        sends_buffers: whether running statistics may leave changed; a release that shares by name sends none.
        encoding: see `SentUpload`.
    """

    release: Release
    prior: Prior
    tolerable_rmse: float
    input_shape: tuple[int, ...]
    input_range: tuple[float, float] | None = None
    sends_buffers: bool = True
    encoding: TableEncoding | None = None

    @cached_property
    def input_maps(self) -> dict[str, InputMap]:
        """Of the layers that see the input but for a scale and a shift."""
        return map_inputs(self.release, self.input_shape)

    def sent(self, batch: Batch, noise: torch.Generator) -> SentUpload:
        """One upload as it leaves.

        Args:
            batch: its samples.
            noise: draws the noise that what is recovered under noise is recovered from.
        """
        if batch.inputs.is_floating_point():
            batch = batch.with_inputs(batch.inputs.to(self.release.dtype))
        mean = self.release.mean(batch).detach()
        drawn = 0.0 if self.release.noise is None else self.release.sample_noise(noise)
        observation = Observation(
            released=mean + drawn,
            jacobian=_AnyJacobian(self.release),
            input_shape=self.input_shape,
            prior=self.prior,
            targets=None,
            input_range=self.input_range,
            upload_size=len(batch),
        )
        sends_buffers = self.sends_buffers and not any(isinstance(step, Share) for step in self.release.spec.all_steps)
        return SentUpload(
            observation, mean[0], batch, self.tolerable_rmse, self.input_maps, sends_buffers, self.encoding
        )


@final
@dataclass(frozen=True, eq=False)
class _AnyJacobian(JacobianFactory):
    """J of any release; checks only read the release off it."""

    release: Release

    @override
    def __call__(self, batch: Batch) -> Jacobian:
        return GenericJacobian(self.release, batch)

    @override
    def of(self, release: Release) -> _AnyJacobian:
        return _AnyJacobian(release)


def record_calls(
    release: Release, inputs: Tensor, kind: type[nn.Module]
) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Layers of one kind that the model calls exactly once at inputs [N, *S]: layer, its first argument, its output."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    layers = {name: layer for name, layer in release.model.named_modules() if isinstance(layer, kind)}

    def noting(name: str) -> Any:
        return lambda layer, arguments, output: seen.setdefault(name, []).append((arguments[0].detach(), output))

    handles = [layer.register_forward_hook(noting(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            release.run(release.parameters, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (layers[name], *calls[0]) for name, calls in seen.items() if len(calls) == 1}


def _shrinkage(release: Release, num_samples: int) -> float:
    """What weight decay alone makes of a weight 1 in theta_0 - theta_K, whatever the gradients are."""
    if not isinstance(release, LocalTrainingRelease):
        return 0.0
    training = release.training
    if training.optimizer != "sgd" or not training.weight_decay:
        return 0.0
    weight, velocity = 1.0, 0.0
    for number, _ in enumerate(training.mini_batches(num_samples // release.spec.num_clients)):
        velocity = training.momentum * velocity + training.weight_decay * weight
        weight -= training.rate(number) * velocity
    return 1.0 - weight
