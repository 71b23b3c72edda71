"""Labels to class numbers.

Whole numbers are class numbers. Words are numbered by name where the model's classes are given; else by their place
among all words of the source, sorted, which is right only if the source knows every class of the model: that is
recorded, and checked against the model's outputs (see `compatibility`). A client often holds some classes only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.reading import Reading

Numbering: TypeAlias = Literal["numbers", "position", "classes"]
# More different words than this are no classes.
MAX_CLASSES = 100_000
NUMBER = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class Numbered:
    """Targets with what their numbers mean.

    Attributes:
        targets: int64 [N] class numbers, or float64 [N].
        class_names: by class number; None where the source has none.
        numbering: "numbers" as stored, "position" among the sorted words of the source, "classes" as the user named.
    """

    targets: Tensor
    class_names: tuple[str, ...] | None = None
    numbering: Numbering = "numbers"

    def of(self, num_samples: int) -> Numbered:
        """The same as the beginning of so many samples, of which only the first will be taken."""
        padding = self.targets.new_zeros(num_samples - len(self.targets))
        return replace(self, targets=torch.cat([self.targets, padding]))


def number_labels(
    texts: Sequence[str], every: Callable[[], Iterable[str]], reading: Reading, name: str, what: str = "sample"
) -> Numbered:
    """Labels, one per sample without space around, as class numbers or float64.

    ``every`` gives all words of the source, those of samples beyond the limit included; ``what`` is that of which a
    message says the number.

    Raises:
        SamplesError: a label is missing, no class, or a word where the loss wants numbers. No message shows a label.
    """
    missing = next((position for position, text in enumerate(texts) if not text), None)
    if missing is not None:
        raise SamplesError(f"{what} {missing} in {name} has no label; fill it in or leave out the row")
    if reading.classes is not None:
        return _by_name(texts, reading.classes, name, what)
    numbers = _whole(texts)
    if numbers is not None:
        return Numbered(numbers)
    try:
        return Numbered(torch.tensor([float(text) for text in texts], dtype=torch.float64))
    except ValueError as cause:
        loss = reading.loss
        if loss is not None and loss.kind != "classification":
            word = next(position for position, text in enumerate(texts) if not is_number(text))
            raise SamplesError(
                f"the label of {what} {word} in {name} isn't a number, which {loss.name} needs; convert the labels, or "
                "name the classes in order with `classes`"
            ) from cause
    words = sorted(set(texts).union(every()))
    if len(words) > MAX_CLASSES:
        raise SamplesError(f"{name} holds more than {MAX_CLASSES} different labels; convert them to class numbers")
    number_of = {word: number for number, word in enumerate(words)}
    return Numbered(torch.tensor([number_of[text] for text in texts], dtype=torch.int64), tuple(words), "position")


def _by_name(texts: Sequence[str], classes: Sequence[str], name: str, what: str) -> Numbered:
    number_of = {word: number for number, word in enumerate(classes)}
    if all(text in number_of for text in texts):
        targets = torch.tensor([number_of[text] for text in texts], dtype=torch.int64)
        return Numbered(targets, tuple(classes), "classes")
    numbers = _whole(texts)
    if numbers is not None:
        return Numbered(numbers, tuple(classes), "classes")
    first = next(position for position, text in enumerate(texts) if text not in number_of)
    raise SamplesError(
        f"the label of {what} {first} in {name} is none of the {len(classes)} names in `classes`; name every class of "
        "the model there, spelt as in the data"
    )


def renumber(targets: Tensor, reading: Reading, name: str) -> Numbered:
    """Class numbers [N] of a file; where the user named the classes, by name if the names are these very numbers."""
    classes = reading.classes
    if classes is None:
        return Numbered(targets)
    flat = targets.reshape(-1)
    if targets.is_floating_point() or targets.ndim > 2 or len(flat) != len(targets):
        return Numbered(targets, tuple(classes), "classes")
    return _by_name([str(value) for value in flat.tolist()], classes, name, "sample")


def _whole(texts: Iterable[str]) -> Tensor | None:
    try:
        # int64 is as far as class numbers go; anything longer is a name.
        return torch.tensor([int(text) for text in texts], dtype=torch.int64)
    except (ValueError, OverflowError, RuntimeError):
        return None


def is_number(text: str) -> bool:
    """Whether ``text`` reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
