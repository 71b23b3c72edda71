"""``singleton-unit``: inputs of a fully connected layer that can be divided out of what leaves.

Row i of dW = D^T X is sum_j D_ji x_j and entry i of db is sum_j D_ji. Where unit i has a signal for sample j alone,
as units behind a ReLU often have, their quotient is x_j, whatever else is in the batch; several units with one
quotient tell the server that it is no mixture. Local steps of SGD, momentum and weight decay (whose shrinkage is
undone) keep that for a layer that sees the model's input; steps of Adam don't. With noise of std sigma the quotient
is off by sigma sqrt(1 + x^2) / |D_ji| per coordinate.

Of a layer without bias, or whose bias stays, row i alone is left: x_j up to the factor D_ji, off by sigma / |D_ji| with
noise. Where the data have a known range, stretching the row as far as it allows gives the factor of every sample that
reaches its end, as images with a white pixel do.

A unit on which the others' signals are next to nothing, or steps of Adam on gradients far below its epsilon, give an
input nearly: findings of their own, "predicted", with the error; such a quotient is within `NEAR` of that input and
much nearer to it than any other sample is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_judged, nothing_to_read, register
from riskaudit.checks.upload import FullyConnected, InputMap, SentUpload
from riskaudit.results.checks import Detail, Recovery

# Relative error up to which a quotient nearly is an input, and share of the way to the next sample likewise.
NEAR = 0.01
# Units that are compared with a sample's input at a time.
UNITS = 1024


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
        layers = [layer for layer in upload.fully_connected if layer.weight is not None]
        if not layers:
            return nothing_to_read(upload, "no fully connected layer's weight leaves as it is")
        return [*(finding for layer in layers for finding in _findings(upload, layer)), *not_judged(upload)]


def _findings(upload: SentUpload, layer: FullyConnected) -> list[Finding]:
    has_bias, sees_input, noisy = layer.bias is not None, layer.input_map is not None, upload.noise_std > 0
    recovered, nearest = _divided_out(upload, layer) if has_bias else _parallel(upload, layer)
    limit = upload.tolerable_rmse if sees_input else upload.tolerable_feature_rmse(layer.inputs)
    enough = {place: min(limit, each.tolerable) / each.per_noise for place, each in recovered.items()}
    leaks = {place: each for place, each in recovered.items() if upload.noise_std < enough[place] or not noisy}
    recovers: tuple[Recovery, Recovery] = ("input", "features") if has_bias else ("scaled_input", "scaled_features")
    finding = Finding(
        "clear",
        layer.name,
        exactness="predicted" if noisy and recovered else "exact",
        recovers=recovers[0] if sees_input else recovers[1],
    )
    found = []
    for is_near in (False, True):
        part = {
            place: each
            for place, each in leaks.items()
            if is_near == (not noisy and each.relative_error > upload.agreement)
        }
        if not part:
            continue
        details: dict[str, Detail | Mapping[int, float]] = {
            "units": {position: float(each.units) for position, each in part.items()},
            "largest_relative_error": max(each.relative_error for each in part.values()),
        }
        if is_near:
            details["relative_error"] = {place: each.relative_error for place, each in part.items()}
        if not has_bias and sees_input and not noisy and upload.observation.input_range is not None:
            details["scale_known"] = {place: float(each.scale_known) for place, each in part.items()}
        predicted = upload.noise_std * min(each.per_noise for each in part.values())
        found.append(
            replace(
                finding,
                status="leak",
                positions=sorted(part),
                exactness="predicted" if is_near else finding.exactness,
                details=details,
                predicted_rmse=predicted if noisy else None,
                clear_from_std=max(enough[place] for place in part),
            )
        )
    if found:
        return found
    ratio = "quotient is a sample's input" if has_bias else "row is a multiple of a sample's input"
    if recovered:
        # Without numbers, so that samples that leave alone have one finding together.
        left = {place: upload.noise_std * each.per_noise for place, each in recovered.items()}
        reason = "the noise leaves an error with which an input doesn't count as recovered (half the spread of inputs)"
        return [replace(finding, reason=reason, details={"error_by_noise": left})]
    if not upload.sums_gradients:
        reason = f"steps of Adam aren't sums of gradients, and no unit's {ratio}"
    else:
        reason = f"every unit mixes several samples, and no unit's {ratio}"
    return [replace(finding, reason=reason, details={} if nearest == inf else {"smallest_relative_error": nearest})]


@dataclass(frozen=True)
class _Recovered:
    """A sample whose input units' quotients, or rows, are.

    Attributes:
        units: how many.
        per_noise: rmse that noise of std 1 leaves, per coordinate of the model's input, or of the layer's where that is
            another thing; other noise in proportion.
        relative_error: of the best unit without noise.
        tolerable: rmse from which on noise hides a direction.
        scale_known: whether the range of the data gives the factor.
    """

    units: int
    per_noise: float
    relative_error: float
    tolerable: float = inf
    scale_known: bool = False


def _divided_out(upload: SentUpload, layer: FullyConnected) -> tuple[dict[int, _Recovered], float]:
    """By position in the upload, and how far the nearest quotient is off."""
    assert layer.bias is not None
    weight, noise = _candidates(upload, layer, layer.weight)
    bias, _ = _candidates(upload, layer, layer.bias)
    signal = bias.abs() > upload.negligible * layer.bias.abs().max()
    weight, bias, noise = weight[signal], bias[signal], noise[signal]
    quotients, surviving, per_entry = weight / bias[:, None], _surviving(upload, weight), _in_units_of_the_input(layer)
    recovered: dict[int, _Recovered] = {}
    nearest = inf
    for owner, row in zip(layer.owners.tolist(), layer.inputs, strict=True):
        off = _off(quotients, row, surviving)
        nearest = min(nearest, float(off.min()) if len(off) else inf)
        agreeing = _agreeing(upload, layer, off, owner, row)
        if not bool(agreeing.any()):
            continue
        strength = _strength(bias[agreeing], noise[agreeing])
        per_noise = float(((1 + row.square()) * per_entry.square()).mean().sqrt() / strength)
        each = _Recovered(int(agreeing.sum()), per_noise, float(off.min()))
        # Of a sequence, the position that is the most exposed.
        recovered[owner] = max(recovered.get(owner, each), each, key=lambda one: (-one.per_noise, one.units))
    return recovered, nearest


def _parallel(upload: SentUpload, layer: FullyConnected) -> tuple[dict[int, _Recovered], float]:
    """By position in the upload, where the bias doesn't leave, and how far the nearest multiple of a row is off."""
    weight, noise = _candidates(upload, layer, layer.weight)
    sizes = weight.abs().amax(1)
    signal = sizes > upload.negligible * sizes.max()
    weight, noise = weight[signal], noise[signal]
    recovered: dict[int, _Recovered] = {}
    nearest = inf
    if weight.shape[1] < 2:
        return recovered, nearest  # a number up to a factor is none
    surviving, per_entry = _surviving(upload, weight), _in_units_of_the_input(layer)
    left, squared = surviving.to(weight.dtype), weight.square().sum(1)
    # Squared sine that is allowed, and rounding: most rows aren't worth a closer look.
    allowed = upload.agreement if layer.input_map is None else NEAR
    near = weight.shape[1] * allowed**2 + 1e3 * torch.finfo(weight.dtype).eps
    for owner, row in zip(layer.owners.tolist(), layer.inputs, strict=True):
        products = weight @ row
        norms = (squared * (left @ row.square())).clamp_min(torch.finfo(weight.dtype).tiny)
        sines = 1 - products.square() / norms
        close = sines <= max(near, float(sines.min()) if len(sines) else near)
        rows, kept = weight[close], surviving[close]
        factors = products[close] / squared[close]
        off = _off(rows * factors[:, None], row, kept)
        nearest = min(nearest, float(off.min()) if len(off) else inf)
        agreeing = _agreeing(upload, layer, off, owner, row)
        if not bool(agreeing.any()):
            continue
        # A row is the input times the signal.
        strength = _strength(1 / factors[agreeing], noise[close][agreeing])
        each = _Recovered(
            int(agreeing.sum()),
            float(per_entry.square().mean().sqrt() / strength),
            float(off.min()),
            0.5 * float((row * per_entry).square().mean().sqrt()),
            _range_gives_scale(upload, layer.input_map, rows[off.argmin()], row, kept[off.argmin()]),
        )
        recovered[owner] = max(recovered.get(owner, each), each, key=lambda one: (-one.per_noise, one.units))
    return recovered, nearest


def _range_gives_scale(
    upload: SentUpload, input_map: InputMap | None, direction: Tensor, row: Tensor, surviving: Tensor
) -> bool:
    """Whether the multiple of a direction [a] that reaches furthest within the data's range is the sample's row [a]."""
    if input_map is None or upload.observation.input_range is None:
        return False
    given = direction.abs() > upload.negligible * direction.abs().max()
    ends = torch.stack([end * input_map.scale + input_map.shift for end in upload.observation.input_range])
    bounds = (ends / torch.where(given, direction, 1.0))[:, given]
    least, most = bounds.amin(0).max(), bounds.amax(0).min()
    reached = direction * (most if most.abs() >= least.abs() else least)
    return float(_off(reached[None], row, surviving[None])) <= upload.agreement


def _in_units_of_the_input(layer: FullyConnected) -> Tensor:
    """By what an error of the layer's input is multiplied, per coordinate [a], where it is one of the model's input."""
    return torch.ones_like(layer.inputs[0]) if layer.input_map is None else 1 / layer.input_map.scale.abs()


def _candidates(upload: SentUpload, layer: FullyConnected, entries: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is tried of entries [m, ...] that leave, and the std of the noise on it in that of one entry, [k] each.

    Units one by one, and differences of units that are neighbours by their threshold: where a server has made all rows
    one direction, only the samples between two thresholds are left in those (Fowl et al., ICLR 2022).
    """
    assert entries is not None
    tried = torch.cat([entries, entries[upload.by_threshold(layer)].diff(dim=0)])
    noise = torch.ones(len(tried), dtype=entries.dtype, device=entries.device)
    noise[len(entries) :] = 2**0.5
    return tried, noise


def _agreeing(upload: SentUpload, layer: FullyConnected, off: Tensor, owner: int, row: Tensor) -> Tensor:
    """Units whose quotients, off [k] from a sample's row, are that row; where none is, those that nearly are."""
    exactly = off <= upload.agreement
    if layer.input_map is None or bool(exactly.any()):
        return exactly
    others = layer.inputs[layer.owners != owner]
    if layer.bias is None:
        squared = others.square().sum(1).clamp_min(torch.finfo(row.dtype).tiny)
        others = others * (others @ row / squared)[:, None]
    apart = float((others - row).abs().amax(1).min() / row.abs().max()) if len(others) else inf
    return off <= NEAR * min(1.0, apart)


def _surviving(upload: SentUpload, weight: Tensor) -> Tensor:
    """Which entries no step has removed."""
    return weight != 0 if upload.removes_entries else torch.ones_like(weight, dtype=torch.bool)


def _strength(signals: Tensor, noise: Tensor) -> Tensor:
    """Of several units' signals together, over the noise on them in that of one entry.

    They are averaged, each weighed by its signal; differences share units, so the best one counts.
    """
    strengths = (signals / noise).square()
    return torch.maximum(strengths[noise == 1].sum(), strengths.max()).sqrt()


def _off(recovered: Tensor, row: Tensor, surviving: Tensor) -> Tensor:
    """How far what each unit gives [units, a] is from a sample's row [a], relative to its largest coordinate, [units].

    Only coordinates that are left count; a unit of which fewer than two coordinates are left says nothing.
    """
    size = row.abs().max()
    if not len(recovered) or not bool(size > 0):
        return torch.full((len(recovered),), torch.inf, dtype=row.dtype, device=row.device)
    # In parts, so that memory is that of a few units.
    parts = zip(torch.split(recovered, UNITS), torch.split(surviving, UNITS), strict=True)
    gaps = torch.cat([torch.where(kept, (part - row).abs(), 0.0).amax(1) for part, kept in parts]) / size
    return torch.where(surviving.sum(1) >= min(2, row.numel()), gaps, torch.inf)
