"""``magnified-gradient``: a gradient that depends on the input far more strongly than training makes it.

With noise of a given size on every entry, what an upload tells of an input goes by the singular values of the
gradient's Jacobian (docs/theory.md, section 2). A server that multiplies them by a factor G, by gains in the weights,
by scales or small variances in normalisations, or by a little in every layer, divides the noise by G. Signs that look
at one layer's weights don't see the last two.

The number is the largest singular value, the median over three samples (`magnification`). Schemes of initialisation
differ in it by a factor of 500, so it is held against the greatest that any of them has; its distance is that of the
logarithms. Training raises it as well, most where sigmoids begin almost flat: by 500 in a LeNet. Once it is above all
fresh models, it stays within a factor of 3 for many epochs, which the model of the round before shows.

Attacks that don't amplify, as imprints, traps, and silenced classes, leave it where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from riskaudit.checks.received.base import (
    FAR,
    WHOLE_MODEL,
    Judgement,
    Measurement,
    Sign,
    SignNotApplicable,
    register,
)
from riskaudit.checks.received.observation import ObservedModel

# Honest models stay within these factors of the greatest fresh one, and of the previous round's where that lies above.
FROM_FRESH, FROM_PREVIOUS = 1e4, 100.0


@register
class MagnifiedGradient(Sign):
    """A gradient that depends on the input far more strongly than training makes it."""

    id: ClassVar[str] = "magnified-gradient"
    title: ClassVar[str] = "A magnified gradient"
    summary: ClassVar[str] = (
        "The gradient depends on the input more strongly, by orders of magnitude, than that of freshly initialised and "
        "trained networks, so that noise that hides samples there doesn't hide them here."
    )
    innocent: ClassVar[str] = "Batch norms whose statistics were taken from almost constant data."
    source: ClassVar[str] = (
        'Wen et al., "Fishing for User Data in Large-Batch Federated Learning", ICML 2022 (gains); Zhang et al., '
        '"Inversion Influence Function", NeurIPS 2023 (the number)'
    )
    units: ClassVar[str] = "released units per data unit; the threshold is a factor"
    # Of the ratio to the greatest of the fresh models.
    threshold: ClassVar[float] = FROM_FRESH
    spread: ClassVar[float] = math.log(FROM_FRESH) / FAR

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        if not observed.classifies:
            raise SignNotApplicable("the loss isn't the cross-entropy of the model's outputs")
        value = observed.magnification
        if isinstance(value, str):
            raise SignNotApplicable(value)
        detail = f"the largest singular value of the gradient's Jacobian is {value:.3g}"
        return {WHOLE_MODEL: Measurement(value, detail)}

    @override
    def judge(self, measured: Measurement, fresh: Sequence[float], previous: float | None) -> Judgement:
        greatest = max(fresh, default=0.0)
        if greatest <= 0:
            return Judgement(None, None, False)
        if measured.value <= 0:
            return Judgement(greatest, None, False)
        distance = math.log(measured.value / greatest)
        leapt = previous is not None and previous > greatest and measured.value >= FROM_PREVIOUS * previous
        return Judgement(greatest, distance / self.spread, measured.value >= FROM_FRESH * greatest or leapt)
