"""``norm-drift``: weights far larger than initialisation makes them, or of another size than they were a round ago.

Gains of hundreds make the gradient of one sample drown all others' (Wen et al., ICML 2022), bins narrow (Fowl et al.,
ICLR 2022) or activations saturate; attention and other branches that are taken out have weights near 0 (PEFTLeak, CVPR
2025). Training changes the size of weights as well, so that only factors of 100 count beside freshly initialised
models, and factors of 10 beside the previous round's. Smaller weights count beside the latter alone, since heads and
branches often begin at 0, and never at the last layer, which is begun anew for other classes.

The number is the root mean square of a layer's weights; its distance is that of the logarithms.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from riskaudit.checks.received.base import (
    FAR,
    Judgement,
    Measurement,
    Sign,
    SignNotApplicable,
    register,
    robust_spread,
)
from riskaudit.checks.received.observation import ObservedModel

# Honest models stay within these factors.
FROM_FRESH, FROM_PREVIOUS = 100.0, 10.0


@register
class NormDrift(Sign):
    """Weights of another size than initialisation, or the previous round, has them."""

    id: ClassVar[str] = "norm-drift"
    title: ClassVar[str] = "Weights of another size"
    summary: ClassVar[str] = (
        "The weights of a layer are larger by orders of magnitude than those of the same layer freshly initialised, or "
        "of another size than a round ago."
    )
    innocent: ClassVar[str] = "Strong weight decay over many epochs, or a layer that was initialised anew."
    source: ClassVar[str] = 'Wen et al., "Fishing for User Data in Large-Batch Federated Learning", ICML 2022'
    units: ClassVar[str] = "root mean square of the weights; the threshold is a factor"
    # Of the ratio to the reference, either way.
    threshold: ClassVar[float] = FROM_FRESH
    spread: ClassVar[float] = math.log(FROM_FRESH) / FAR

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        sizes = {
            name.removesuffix(".weight"): float(value.double().square().mean().sqrt())
            for name, value in observed.weights.items()
        }
        if not any(sizes.values()):
            raise SignNotApplicable("no parameter with two or more sizes holds anything but 0")
        # A layer that is still 0, as branches and heads begin in some schemes, has no size to compare.
        last = None if observed.head is None else observed.head.layer
        return {
            name: Measurement(size, f"the root mean square of the weights is {size:.3g}", may_shrink=name == last)
            for name, size in sizes.items()
            if size > 0
        }

    @override
    def judge(self, measured: Measurement, fresh: Sequence[float], previous: float | None) -> Judgement:
        logs = [math.log(value) for value in fresh if value > 0]
        value = math.log(measured.value)
        flagged, reference, z = False, None, None
        if logs:
            median = statistics.median(logs)
            reference = math.exp(median)
            z = (value - median) / max(robust_spread(logs), self.spread)
            flagged = z >= FAR and value - median >= math.log(FROM_FRESH)
        if previous is not None and previous > 0:
            change = value - math.log(previous)
            far = abs(change) >= math.log(FROM_PREVIOUS)
            flagged = flagged or (far and not (change < 0 and measured.may_shrink))
        return Judgement(reference, z, flagged)
