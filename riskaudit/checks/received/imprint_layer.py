"""``imprint-layer``: a fully connected layer whose rows are multiples of one another, with thresholds spread over data.

Unit i of such a layer is active where w . x > t_i = -b_i / s_i, with w the rows' common direction and s_i the row's
length along it. If the t_i are quantiles of w . x, few samples lie between two of them, and the difference of two
units' gradients is such a sample (Fowl et al., "Robbing the Fed", ICLR 2022, section 3; LOKI, S&P 2024, hands every
client other ones).

The number is the share of the layer's units in the largest set of such rows with thresholds that differ and that
some sample reaches or nearly reaches. Rows of honest layers are multiples of one another where one training step
made them all from nothing (a head that began at 0); they then have one threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.received.base import Measurement, Sign, SignNotApplicable, register
from riskaudit.checks.received.observation import Layer, ObservedModel

# From this cosine on two rows are multiples of each other; rows of trained layers reached 0.84.
PARALLEL = 0.99
# Fewer units split a batch no further than any layer does.
LEAST_UNITS = 6
# Thresholds closer than this part of their range are one.
_APART = 1e-4
# Rows that are looked at, evenly spaced, of a layer with more.
_MAX_ROWS = 4096


@register
class ImprintLayer(Sign):
    """Rows that are multiples of one another, with thresholds spread over the data."""

    id: ClassVar[str] = "imprint-layer"
    title: ClassVar[str] = "Imprint layer"
    summary: ClassVar[str] = (
        "The units of a layer ask the same question of every sample with thresholds spread over the data, so that "
        "differences of their gradients are single samples."
    )
    innocent: ClassVar[str] = "A layer that bins one feature on purpose, as some encodings of numbers do."
    source: ClassVar[str] = 'Fowl et al., "Robbing the Fed", ICLR 2022; Zhao et al., "LOKI", S&P 2024'
    units: ClassVar[str] = "share of the layer's units"
    threshold: ClassVar[float] = 0.01
    spread: ClassVar[float] = 0.001

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        layers = {name: layer for name, layer in observed.layers.items() if _may_imprint(layer)}
        if not layers:
            raise SignNotApplicable(
                f"no fully connected layer with biases, {LEAST_UNITS} units and two inputs or more is called"
            )
        return {name: _measured(layer, observed.num_samples) for name, layer in layers.items()}


def _may_imprint(layer: Layer) -> bool:
    units, inputs = layer.weight.shape[0], layer.weight[0].numel()
    return layer.kind == "linear" and layer.bias is not None and units >= LEAST_UNITS and inputs >= 2


def _measured(layer: Layer, num_samples: int) -> Measurement:
    assert layer.bias is not None
    weight, bias = layer.weight.double(), layer.bias.double()
    units = len(weight)
    lengths = weight.norm(dim=1)
    rows = (lengths > 1e-6 * lengths.amax().clamp(min=1e-300)).nonzero()[:, 0]
    if len(rows) < LEAST_UNITS:
        return Measurement(0.0)
    if len(rows) > _MAX_ROWS:
        rows = rows[torch.linspace(0, len(rows) - 1, _MAX_ROWS).long()]
    directions = F.normalize(weight[rows], dim=1)
    cosines = directions @ directions.T
    parallel = cosines.abs() >= PARALLEL
    middle = int(parallel.sum(1).argmax())
    group = rows[parallel[middle]]
    lengths_along = lengths[group] * cosines[middle, parallel[middle]].sign()
    thresholds = -bias[group] / lengths_along
    if layer.low is not None and layer.high is not None and num_samples > 1:
        low, high = layer.low[group].double(), layer.high[group].double()
        span = (high - low).clamp(min=0)
        reached = (-bias[group] >= low - span) & (-bias[group] <= high + span)
        thresholds = thresholds[reached]
    count = _distinct(thresholds)
    detail = f"{count} of {units} units are multiples of one row, with thresholds of their own that the samples reach"
    return Measurement(count / units if count >= LEAST_UNITS else 1 / units, detail)


def _distinct(values: Tensor) -> int:
    """How many of some numbers differ."""
    if len(values) < 2:
        return len(values)
    ordered = values.sort().values
    gaps = ordered.diff()
    return 1 + int((gaps > _APART * (ordered[-1] - ordered[0]) / len(values)).sum())
