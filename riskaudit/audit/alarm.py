"""Losses that a trained model doesn't have on its own data: the audited function is perhaps not the trained one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.nn import CrossEntropyLoss
from torch.nn.functional import cross_entropy

from riskaudit.inputs import Loss

# Untrained models come to ln C give or take what their random outputs add; trained ones lie far below this share of it.
GUESSING = 0.95
# Beyond this factor of ln C a model is surer of wrong classes than untrained ones get.
FAR = 1.5
# Losses of held-out data are above those of training, seldom so many times and by so much.
MOST_OF_TRAINING, LEAST_EXCESS = 3.0, 0.5


def is_cross_entropy(loss: Loss) -> bool:
    """Whether guessing among C classes costs ln C."""
    return loss.name == "cross-entropy" or loss.function is cross_entropy or isinstance(loss.function, CrossEntropyLoss)


def loss_alarm(losses: Sequence[float], classes: int | None, training_loss: float | None = None) -> list[str]:
    """Sentences about the mean loss of samples, where it is at or above that of guessing or far above training's.

    Args:
        losses: of the samples; those that aren't finite are left out.
        classes: C, that the model tells apart by cross-entropy of class numbers; None with any other loss.
        training_loss: that the checkpoint's file names.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return []
    mean = sum(finite) / len(finite)
    sentences = [] if classes is None or classes < 2 else _against_guessing(mean, classes)
    if training_loss is not None and mean > max(MOST_OF_TRAINING * training_loss, training_loss + LEAST_EXCESS):
        sentences.append(
            f"the mean loss of the samples is {mean:.3g}, far above the {training_loss:.3g} that the checkpoint's file "
            "names: check labels, normalisation and architecture, or the numbers are of another model"
        )
    return sentences


def _against_guessing(mean: float, classes: int) -> list[str]:
    chance = math.log(classes)
    if mean < GUESSING * chance:
        return []
    if mean >= FAR * chance:
        return [
            f"ALARM: the mean loss of the samples is {mean:.3g}, far above that of guessing among {classes} classes "
            f"({chance:.3g}): check labels, normalisation and architecture, or the numbers are of another model"
        ]
    return [
        f"the mean loss of the samples is {mean:.3g}, no better than guessing among {classes} classes ({chance:.3g}): "
        "the model is untrained, or these aren't the labels, the normalisation or the activations that it was trained "
        "with; the numbers hold for the model as it is given"
    ]
