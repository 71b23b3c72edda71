"""``lone-activation``: units of which nearly all are active for the same small share of the data.

What an attacker wants of a batch of B samples are units that are active for one of them each, so for 1/B of the data:
trap weights (Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023) and biases at the quantile 1 - 1/B
(Nowak et al., "QBI: Quantile-Based Bias Initialization", 2024) make all of a layer's units so. Units of honest layers
are active for very different shares: of fresh ones many are on or off for all samples, and training spreads them.

The number is the largest share of a layer's active units whose share of samples lies within a factor of 2 of some
c <= 1/8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from riskaudit.checks.received.activity import LEAST_UNITS, gates_of
from riskaudit.checks.received.base import Measurement, Sign, register
from riskaudit.checks.received.observation import ObservedModel

# A unit that is active for more of the data than this hides a sample among others.
LARGEST_SHARE = 1 / 8


@register
class LoneActivation(Sign):
    """Units that are all active for about the same few samples' worth of the data."""

    id: ClassVar[str] = "lone-activation"
    title: ClassVar[str] = "Units for one sample each"
    summary: ClassVar[str] = (
        "Nearly all units of a layer are active for the same small share of the data, about one sample of a batch, and "
        "the gradient of such a unit is that sample."
    )
    innocent: ClassVar[str] = "Training that was made to have sparse activations, by a penalty or a top-k rule."
    source: ClassVar[str] = (
        'Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023; Nowak et al., "QBI", 2024'
    )
    units: ClassVar[str] = "share of the layer's active units"
    threshold: ClassVar[float] = 0.7
    spread: ClassVar[float] = 0.03
    # Trained layers reached 0.78 on 8 samples, 0.82 on 16 and 0.64 on 32.
    min_samples: ClassVar[int] = 32

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        return {name: _measured(active) for name, active in gates_of(observed).items()}


def _measured(active: Tensor) -> Measurement:
    shares = active.double().mean(0)
    shares = shares[shares > 0]
    if len(shares) < LEAST_UNITS:
        return Measurement(0.0, f"no more than {len(shares)} units are ever active")
    counted = [(float(((shares >= c / 2) & (shares <= 2 * c)).double().mean()), c) for c in _centres(len(active))]
    value, centre = max(counted)
    detail = (
        f"{value:.0%} of the {len(shares)} units that any sample activates are active for {centre / 2:.2g} to "
        f"{2 * centre:.2g} of the samples"
    )
    return Measurement(value, detail)


def _centres(num_samples: int) -> Iterator[float]:
    """1/8 and what is smaller, by steps of the root of 2, down to one sample."""
    centre = LARGEST_SHARE
    while centre * num_samples >= 1:
        yield centre
        centre /= 2**0.5
