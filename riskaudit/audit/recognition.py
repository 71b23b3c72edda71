"""Whether losses confirm an architecture that was recognised from the shapes of its weights.

Shapes don't show activations, strides or pooling. Weights that were trained with others give another function, whose
gradients may reveal far less than the true ones. Losses can show that the assumption is right: the wrong function
hardly tells classes apart that its weights were trained on. They can't show it of a network that wasn't trained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from riskaudit.audit.client import Client
from riskaudit.results import SampleRow
from riskaudit.results.stored import kept_as

# A loss below this share of what the frequencies of the labels alone achieve.
CONFIRMING_SHARE = 0.5
_SAMPLES_AT_ONCE = 64
UNCONFIRMED = "losses don't confirm the architecture, which was only recognised"


def doubt_of(client: Client) -> str | None:
    """Why a recognised architecture isn't confirmed, with what to do; None where it is, or where it was named."""
    checkpoint = client.checkpoint
    if checkpoint.assumed is None:
        return None
    reached, chance = _losses(client)
    if reached is not None and chance is not None and reached < CONFIRMING_SHARE * chance:
        return None
    observed = "no loss of class numbers"
    if reached is not None and chance is not None:
        observed = f"a mean loss of {reached:.3g} where the frequencies of the labels alone give {chance:.3g}"
    name = checkpoint.architecture
    return (
        f"{name} was only recognised from names and shapes (assumed: {checkpoint.assumed}), and {observed} doesn't "
        "confirm it, so no sample is called low, no limit is held and no noise is recommended; if the "
        f"assumption is right say so with `arch={name}`, else name your own model with `arch=file.py:factory`"
    )


def _losses(client: Client) -> tuple[float | None, float | None]:
    """The mean loss of all samples and the entropy of their labels; None without class numbers."""
    targets = client.samples.targets
    if client.loss.kind != "classification" or targets.is_floating_point() or targets.ndim != 1:
        return None, None
    counts = Counter(targets.tolist())
    chance = -sum(count / len(targets) * math.log(count / len(targets)) for count in counts.values())
    total = 0.0
    for first in range(0, len(targets), _SAMPLES_AT_ONCE):
        batch = client.batch(list(range(first, min(first + _SAMPLES_AT_ONCE, len(targets)))))
        with torch.no_grad():
            total += float(client.loss(client.release.model(batch.inputs), batch.targets)) * len(batch.targets)
    reached = total / len(targets)
    return (reached if math.isfinite(reached) else None), chance


def without_protective_claims(rows: Sequence[SampleRow], reason: str = UNCONFIRMED) -> Sequence[SampleRow]:
    """The rows with "low" as "not assessed", which their reason says, and without noise that would suffice."""
    low = {"verdict": "not_assessed", "reason": reason}
    return kept_as(
        rows,
        (row.model_copy(update={"noise_std_for_target": None} | (low if row.verdict == "low" else {})) for row in rows),
    )
