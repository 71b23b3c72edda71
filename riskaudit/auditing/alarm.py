"""Losses that a trained model doesn't have on its own data: the audited function is perhaps not the trained one."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Beyond this factor of ln C a model is surer of wrong classes than untrained ones get, which are at ln C.
FAR = 1.5


def loss_alarm(losses: Sequence[float], classes: int) -> list[str]:
    """A sentence about the mean cross-entropy of samples, where it is far above that of guessing.

    Args:
        losses: of the samples; those that aren't finite are left out.
        classes: C, that the model tells apart.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if classes < 2 or not finite:
        return []
    mean, chance = sum(finite) / len(finite), math.log(classes)
    if mean < FAR * chance:
        return []
    return [
        f"ALARM: the mean loss of the samples is {mean:.3g}, far above that of guessing among {classes} classes "
        f"({chance:.3g}): check labels, normalisation and architecture, or the numbers are of another model"
    ]
