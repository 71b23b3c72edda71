"""``singleton-share``: of a layer's units that a batch activates, how many only one of its samples does.

The gradient of such a unit is that sample's input to the layer, dW_i / db_i = x, whatever the rest of the batch is. If
every unit is active with probability p, the share of singletons is B p (1 - p)^(B - 1), largest at p = 1/B, where it is
0.58 of the units that are active at all. Trained layers have a part of it without anybody's doing, so the share alone
is flagged only beyond what they show, and with the previous round's model at hand where it has leapt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from riskaudit.checks.received.activity import LEAST_UNITS, gates_of
from riskaudit.checks.received.base import Judgement, Measurement, Sign, register
from riskaudit.checks.received.observation import ObservedModel

# From one round to the next honest training moves the share less than this, and to less than that.
LEAP, LEAPT_TO = 0.3, 0.35
# Trained layers reached 0.56 in batches of 8, and 0.41 in batches of 16, so smaller batches are judged as these.
LEAST_BATCH = 16


@register
class SingletonShare(Sign):
    """Units that one sample of a batch activates alone."""

    id: ClassVar[str] = "singleton-share"
    title: ClassVar[str] = "Units of a single sample of a batch"
    summary: ClassVar[str] = (
        "Most units that a batch activates are active for one of its samples alone, whose input to the layer then "
        "stands in the gradient."
    )
    innocent: ClassVar[str] = "A layer that was trained to have very sparse activations."
    source: ClassVar[str] = 'Boenisch et al., "When the Curious Abandon Honesty", EuroS&P 2023, section 5'
    units: ClassVar[str] = "share of the units that a batch activates"
    threshold: ClassVar[float] = 0.5
    spread: ClassVar[float] = 0.03
    min_samples: ClassVar[int] = LEAST_BATCH

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        size = observed.batch_size
        return {name: _measured(active, size) for name, active in gates_of(observed).items()}

    @override
    def judge(self, measured: Measurement, fresh: Sequence[float], previous: float | None) -> Judgement:
        judgement = super().judge(measured, fresh, previous)
        if previous is None or measured.value < LEAPT_TO or measured.value - previous < LEAP:
            return judgement
        return Judgement(judgement.reference, judgement.z, True)


def _measured(active: Tensor, batch_size: int) -> Measurement:
    size = max(batch_size, LEAST_BATCH)
    if int(active.any(0).sum()) < LEAST_UNITS:
        return Measurement(0.0, f"no more than {int(active.any(0).sum())} units are ever active")
    batches = active[: len(active) // size * size].reshape(-1, size, active.shape[1]).sum(1)
    shares = (batches == 1).sum(1).double() / (batches > 0).sum(1).clamp(min=1)
    value = float(shares.mean())
    return Measurement(value, f"{value:.0%} of the units that a batch of {size} activates have one sample each")
