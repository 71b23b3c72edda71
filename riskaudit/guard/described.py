"""A training as the guard's release describes it, held against how it went as it was recorded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain

from riskaudit.errors import GuardError
from riskaudit.formatting import count
from riskaudit.guard.optimizers import StepSettings
from riskaudit.release.training import ALL, LocalTraining

# An optimizer may hold its numbers in single precision.
ROUNDING = 1e-6


def refuse_other_settings(described: LocalTraining, settings: StepSettings) -> None:
    """Hold the settings of a step against the description.

    Raises:
        GuardError: one of them is another.
    """
    for name in ("optimizer", "lr", "momentum", "weight_decay"):
        said, found = getattr(described, name), getattr(settings, name)
        if said != found and not (name != "optimizer" and math.isclose(said, found, rel_tol=ROUNDING)):
            raise _other(name, str(said), str(found))


def refuse_larger_batch(described: LocalTraining, num_samples: int) -> None:
    """Hold the samples of one mini-batch against the description.

    Raises:
        GuardError: there are more.
    """
    if described.batch is not None and num_samples > described.batch:
        raise _other("batch", str(described.batch), f"a mini-batch of {count(num_samples, 'sample')}")


def refuse_other_batches(described: LocalTraining, steps: Sequence[Sequence[Hashable]]) -> None:
    """Hold the mini-batches of a whole round against the description; the order of the samples is left open.

    Args:
        described: what they should be.
        steps: the samples of every step; those that are one are equal.

    Raises:
        GuardError: the samples were passed over another number of times, or in mini-batches of other sizes.
    """
    times = Counter(chain.from_iterable(steps)).values()
    if math.gcd(*times) != described.epochs:
        least, most = min(times), max(times)
        often = count(least, "time") if least == most else f"{least} to {most} times"
        raise _other("epochs", str(described.epochs), f"each sample {often}")
    sizes = [len(step) for step in steps]
    per_epoch = sum(sizes) // described.epochs
    expected = [len(step) for step in described.mini_batches(per_epoch)]
    if sizes != expected:
        place = next((at for at, pair in enumerate(zip(sizes, expected, strict=False)) if len(set(pair)) > 1), 0)
        found = f"{count(len(sizes), 'step')}, of which step {place + 1} on {count(sizes[place], 'sample')}"
        said = f"{described.batch or ALL}, {count(len(expected), 'step')} on {count(per_epoch, 'sample')} per epoch"
        raise _other("batch", said, found)


def _other(name: str, said: str, found: str) -> GuardError:
    return GuardError(
        f"expected {name} = {said}, as the guard's release says, found {found} in the training; "
        "correct one of the two, or leave the local training out of the guard's release, which needs none to record"
    )
