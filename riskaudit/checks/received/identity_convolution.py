"""``identity-convolution``: kernels that pass their input on unchanged.

To have the user's images arrive at a planted fully connected layer, layers before it must change nothing: kernels with
one entry that isn't 0, at the same place and of the same size for all channels (Boenisch et al., EuroS&P 2023, section
4.2; Fowl et al., ICLR 2022), or rows of an identity matrix in a transformer's layers (PEFTLeak, CVPR 2025).

The number is the share of a layer's input channels that such kernels pass on, with one gain. Pruning leaves kernels
with a single entry too, but in random places and with other gains: the reference is the same weights in random order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.received.base import Judgement, Measurement, Sign, SignNotApplicable, register
from riskaudit.checks.received.observation import Layer, ObservedModel

# Of a kernel's squares, the part that its one entry must have.
_PURE = 0.999
# Gains that differ by less than this part are one.
_EQUAL = 1e-3
# Kernels whose largest entry is below this part of the layer's are 0.
_NEGLIGIBLE = 1e-3
_REARRANGEMENTS = 64
_SEED = 20231


@register
class IdentityConvolution(Sign):
    """Kernels that pass their input on unchanged."""

    id: ClassVar[str] = "identity-convolution"
    title: ClassVar[str] = "Layers that pass their input on"
    summary: ClassVar[str] = (
        "A layer hands its input on as it is, so that inputs arrive unchanged at a later layer whose gradient tells "
        "them."
    )
    innocent: ClassVar[str] = "Initialisation by identity kernels (dirac, delta-orthogonal), kept through training."
    source: ClassVar[str] = 'Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023; PEFTLeak, CVPR 2025'
    units: ClassVar[str] = "share of the layer's input channels"
    threshold: ClassVar[float] = 0.01
    spread: ClassVar[float] = 0.001

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        layers = {name: layer for name, layer in observed.layers.items() if _may_pass_on(layer)}
        if not layers:
            raise SignNotApplicable("no layer with two or more weights per unit is called")
        return {name: _measured(layer) for name, layer in layers.items()}

    @override
    def judge(self, measured: Measurement, fresh: Sequence[float], previous: float | None) -> Judgement:
        judgement = super().judge(measured, fresh, previous)
        # Of sparse layers a random order passes on many channels, but all of them never.
        whole = measured.value == 1 and max(measured.chance) < 1
        return Judgement(judgement.reference, judgement.z, judgement.flagged or whole)


def _may_pass_on(layer: Layer) -> bool:
    return layer.weight[0].numel() >= 2


def _measured(layer: Layer) -> Measurement:
    kernels = layer.weight.double().flatten(2) if layer.weight.ndim > 2 else layer.weight.double().unsqueeze(2)
    channels = kernels.shape[1] * layer.groups
    count = _passed_on(kernels, layer.groups)
    if count < min(2, channels):
        return Measurement(0.0, chance=(0.0,))
    detail = f"{count} of {channels} input channels are passed on unchanged, at one place and with one gain"
    if channels == 1 and _does_nothing_else(kernels):
        return Measurement(1.0, f"{detail}, and nothing else is done", (0.0,))
    generator = torch.Generator().manual_seed(_SEED)
    chance = []
    for _ in range(_REARRANGEMENTS):
        order = torch.randperm(kernels.numel(), generator=generator).to(kernels.device)
        chance.append(_passed_on(kernels.flatten()[order].reshape(kernels.shape), layer.groups) / channels)
    return Measurement(count / channels, detail, tuple(chance))


def _single(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels [m, c, K] with one entry that isn't 0: which they are, its place among c K, and its value."""
    flat = kernels.flatten(1)
    peaks, places = flat.abs().max(1)
    single = (peaks > _NEGLIGIBLE * peaks.amax()) & (peaks.square() >= _PURE * flat.square().sum(1))
    units = single.nonzero()[:, 0]
    return units, places[units], flat[units, places[units]]


def _passed_on(kernels: Tensor, groups: int) -> int:
    """How many input channels are passed on at one place with one gain; kernels [m, c, K]."""
    num_units, channels, places = kernels.shape
    units, entries, gains = _single(kernels)
    if not len(units):
        return 0
    place = entries % places
    if channels * groups == 1:
        # A kernel with a single entry is nothing rare here, one with the entry 1 in the middle is.
        in_the_middle = place == places // 2
        return int(bool((in_the_middle & ((gains - 1).abs() <= _EQUAL)).any()) or _does_nothing_else(kernels))
    channel = entries // places + units // max(1, num_units // groups) * channels
    step = (gains.abs().log() / _EQUAL).round()
    most = 0
    # Neighbouring steps hold what lies on both sides of a step's edge.
    for offset in (0, 1):
        keys = torch.stack([place, gains.sign().long(), ((step + offset) / 2).floor().long(), channel])
        distinct = torch.unique(keys, dim=1)
        most = max(most, int(torch.unique(distinct[:3], dim=1, return_counts=True)[1].amax()))
    return most


def _does_nothing_else(kernels: Tensor) -> bool:
    """Whether all kernels that aren't 0 pass on one channel [m, 1, K] at the middle."""
    units, entries, _ = _single(kernels)
    middle = kernels.shape[2] // 2
    return bool(len(units)) and int((kernels != 0).sum()) == len(units) and bool((entries == middle).all())
