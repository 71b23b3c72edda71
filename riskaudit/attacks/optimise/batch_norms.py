"""Batch-norm statistics as a penalty: what guesses are at every batch-norm layer, against what is known of the truth.

Yin et al., CVPR 2021, Eq. 9: sum over layers of ||mean - known mean||_2 + ||variance - known variance||_2, over the
samples of one client's batch and all positions. Known are the layer's running statistics, or, where it computes with
those of each batch, what the observation says: the running statistics of the model that the client received, or what
was sent along. All layers see the weights before training; the mini-batches of local training count as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.attacks.optimise.regularisers import Penalty, Regulariser, nothing
from riskaudit.release import Release, mixes_samples

Statistics: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance of what enters a batch-norm layer, by its name."""


@final
@dataclass(frozen=True)
class BatchNormStatistics(Regulariser):
    """Distance of the guesses' mean and variance, at every batch-norm layer, from the known ones.

    Without positions one sample by itself has only a mean. 0 without such layers, or where nothing is known of the
    victim's statistics.
    """

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        release, known = observation.release, known_statistics(observation)
        if not known:
            return nothing
        clients = release.spec.num_clients
        size = observation.upload_size // clients

        def distance(inputs: Tensor) -> Tensor:
            total = inputs.new_zeros(len(inputs) // size, dtype=torch.float64)
            for name, (mean, variance) in batch_statistics(release, inputs, size).items():
                if name not in known:
                    continue
                known_mean, known_variance = (value.repeat_interleave(clients, 0) for value in known[name])
                total = total + (mean - known_mean).norm(dim=-1)
                if not variance.isnan().any():
                    total = total + (variance - known_variance).norm(dim=-1)
            return total.repeat_interleave(size)

        return distance


def known_statistics(observation: Observation) -> Statistics:
    """Of every upload, each [B, C] in float64; none where they aren't those of the victim's data."""
    if observation.layer_statistics is not None:
        known = observation.layer_statistics.items()
        return {name: (mean.double(), variance.double()) for name, (mean, variance) in known}
    if not observation.batch_norm_statistics:
        return {}
    running = running_statistics(observation.release.model)
    return {
        name: (mean.expand(len(observation), -1), var.expand(len(observation), -1)) for name, (mean, var) in running
    }


def running_statistics(model: nn.Module) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    """Running mean and variance of every layer that keeps them, by its name, each [C] in float64."""
    return [
        (name, (layer.running_mean.double(), layer.running_var.double()))
        for name, layer in _layers(model).items()
        if layer.running_mean is not None and layer.running_var is not None
    ]


def batch_statistics(release: Release, inputs: Tensor, size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What inputs [G size, *S] are at every batch-norm layer, as G batches: means and variances, each [G, C], float64.

    Variances of one value are no number.
    """
    mixes = release.coupling == "joint" and mixes_samples(release.model)
    parts = torch.split(inputs, size) if mixes else (inputs,)
    collected: dict[str, list[Tensor]] = {}
    for part in parts:
        with _entering(release.model) as seen:
            release.run(release.parameters, part)
        for name, values in seen:
            positions = values.flatten(2) if values.ndim > 2 else values[..., None]
            # [batches, size, C, positions] to [batches, C, size positions].
            grouped = positions.double().reshape(-1, size, *positions.shape[1:]).transpose(1, 2).flatten(2)
            collected.setdefault(name, []).append(grouped)
    found = {}
    for name, groups in collected.items():
        values = torch.cat(groups)
        single = values.shape[-1] == 1
        variance = torch.full_like(values[..., 0], torch.nan) if single else values.var(-1, correction=0)
        found[name] = (values.mean(-1), variance)
    return found


def _layers(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}


@contextmanager
def _entering(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collects what enters each batch-norm layer while the model runs, [N, C, ...], by the layer's name."""
    seen: list[tuple[str, Tensor]] = []
    names = {layer: name for name, layer in _layers(model).items()}

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        seen.append((names[layer], arguments[0]))

    handles = [layer.register_forward_pre_hook(note) for layer in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
