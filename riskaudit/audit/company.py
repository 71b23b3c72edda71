"""Who else is in a sample's upload: others of its class, and copies of it."""

from __future__ import annotations

from torch import Tensor

from riskaudit.release import Batch


def is_class_number(target: Tensor) -> bool:
    """Whether one sample's target says no more than its class."""
    return target.ndim == 0 and not target.is_floating_point() and not target.is_complex()


def classmates_of(batch: Batch, place: int) -> int | None:
    """How many others of its upload are of a sample's class, copies left out; None for targets that are no class."""
    first = place - place % batch.upload_size
    targets = batch.targets[first : first + batch.upload_size]
    if not is_class_number(targets[0]):
        return None
    return int(((targets == targets[place - first]) & ~_equal_inputs(batch, place)).sum())


def copies_of(batch: Batch, place: int) -> int:
    """How many samples of its upload have a sample's input, itself among them."""
    return int(_equal_inputs(batch, place).sum())


def _equal_inputs(batch: Batch, place: int) -> Tensor:
    """Which samples of its upload have a sample's input, [n]; itself even where that is no number."""
    first = place - place % batch.upload_size
    inputs = batch.inputs[first : first + batch.upload_size].flatten(1)
    equal = (inputs == inputs[place - first]).all(1)
    equal[place - first] = True
    return equal
