"""``singleton-unit``: inputs of a fully connected layer that can be divided out of what leaves.

Row i of dW = D^T X is sum_j D_ji x_j and entry i of db is sum_j D_ji. Where unit i has a signal for sample j alone,
as units behind a ReLU often have, their quotient is x_j, whatever else is in the batch; several units with one
quotient tell the server that it is no mixture. Local steps of SGD, momentum and weight decay (whose shrinkage is
undone) keep that for a layer that sees the model's input; steps of Adam don't. With noise of std sigma the quotient
is off by sigma sqrt(1 + x^2) / |D_ji| per coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import FullyConnected, SentUpload
from riskaudit.results.checks import Detail, Recovery


@register
@final
class SingletonUnit(Check):
    """See the module."""

    id: ClassVar[str] = "singleton-unit"
    title: ClassVar[str] = "Inputs divided out of a layer's gradient"
    summary: ClassVar[str] = "A unit that only one sample drives carries that sample's input to the layer in the clear."
    remedy: ClassVar[str] = (
        "Add noise, send larger batches, put a convolution before the first fully connected layer, or replace ReLU."
    )
    source: ClassVar[str] = (
        "Phong et al., 2018; Geiping et al., NeurIPS 2020, Proposition 3.1; Boenisch et al., EuroS&P 2023"
    )
    recovers: ClassVar[Recovery] = "input"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        layers = [layer for layer in upload.fully_connected if layer.weight is not None and layer.bias is not None]
        if not layers:
            return not_applicable("no fully connected layer's weight and bias leave as they are")
        return [_finding(upload, layer) for layer in layers]


def _finding(upload: SentUpload, layer: FullyConnected) -> Finding:
    recovered = _divided_out(upload, layer)
    sees_input, noisy = layer.input_map is not None, upload.noise_std > 0
    limit = upload.tolerable_rmse if sees_input else upload.tolerable_feature_rmse(layer.inputs)
    leaks = {position: each for position, each in recovered.items() if not noisy or each.rmse < limit}
    finding = Finding(
        "clear" if not leaks else "leak",
        layer.name,
        sorted(leaks),
        "predicted" if noisy and recovered else "exact",
        recovers="input" if sees_input else "features",
    )
    if leaks:
        details: dict[str, Detail | Mapping[int, float]] = {
            "units": {position: float(each.units) for position, each in leaks.items()},
            "largest_relative_error": max(each.relative_error for each in leaks.values()),
        }
        return replace(
            finding, details=details, predicted_rmse=min(each.rmse for each in leaks.values()) if noisy else None
        )
    if recovered:
        least = min(each.rmse for each in recovered.values())
        reason = f"the noise leaves an error of {least:.3g} at least, and {limit:.3g} counts as not recovered"
    elif not upload.sums_gradients:
        reason = "steps of Adam aren't sums of gradients, and no unit's quotient is a sample's input"
    else:
        reason = "every unit mixes several samples, and no unit's quotient is a sample's input"
    return replace(finding, reason=reason)


@dataclass(frozen=True)
class _Recovered:
    """A sample whose input units' quotients are.

    Attributes:
        units: how many.
        rmse: that the noise leaves, per coordinate of the model's input, or of the layer's where that is another thing.
        relative_error: of the best unit without noise.
    """

    units: int
    rmse: float
    relative_error: float


def _divided_out(upload: SentUpload, layer: FullyConnected) -> dict[int, _Recovered]:
    """By position in the upload."""
    weight, bias, noise = _candidates(upload, layer)
    quotients = weight / bias[:, None]
    surviving = weight != 0 if upload.removes_entries else torch.ones_like(weight, dtype=torch.bool)
    scale = torch.ones_like(layer.inputs[0]) if layer.input_map is None else layer.input_map.scale
    recovered: dict[int, _Recovered] = {}
    for owner, row in zip(layer.owners.tolist(), layer.inputs, strict=True):
        off = _off(quotients, row, surviving)
        agreeing = off <= upload.agreement
        if not bool(agreeing.any()):
            continue
        signals = (bias / noise)[agreeing].square()
        units = noise[agreeing] == 1
        # Quotients of several units are averaged, each weighed by its signal; differences share units, so the best one.
        strength = torch.maximum(signals[units].sum(), signals.max()).sqrt()
        per_unit = upload.noise_std * ((1 + row.square()) / scale.square()).mean().sqrt()
        each = _Recovered(int(agreeing.sum()), float(per_unit / strength), float(off.min()))
        # Of a sequence, the position that is the most exposed.
        recovered[owner] = max(recovered.get(owner, each), each, key=lambda one: (-one.rmse, one.units))
    return recovered


def _candidates(upload: SentUpload, layer: FullyConnected) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [k, a] and entries [k] whose quotients are tried, and the std of the noise on them in that of one entry [k].

    Units one by one, and differences of units that are neighbours by their threshold: where a server has made all rows
    one direction, only the samples between two thresholds are left in those (Fowl et al., ICLR 2022).
    """
    assert layer.weight is not None
    assert layer.bias is not None
    order = upload.by_threshold(layer)
    weight = torch.cat([layer.weight, layer.weight[order].diff(dim=0)])
    bias = torch.cat([layer.bias, layer.bias[order].diff()])
    noise = torch.ones_like(bias)
    noise[len(order) :] = 2**0.5
    signal = bias.abs() > upload.negligible * layer.bias.abs().max()
    return weight[signal], bias[signal], noise[signal]


def _off(quotients: Tensor, row: Tensor, surviving: Tensor) -> Tensor:
    """How far each unit's quotient is from a sample's row, relative to its largest coordinate, [units].

    Only coordinates that are left count; a unit of which fewer than two coordinates are left says nothing.
    """
    size = row.abs().max()
    if not len(quotients) or not bool(size > 0):
        return torch.full((len(quotients),), torch.inf, dtype=row.dtype, device=row.device)
    gaps = torch.where(surviving, (quotients - row).abs(), 0.0).amax(1) / size
    return torch.where(surviving.sum(1) >= min(2, row.numel()), gaps, torch.inf)
