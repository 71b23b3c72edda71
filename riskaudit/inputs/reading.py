"""How samples are to be read: what the user said, and what the model tells.

The names that people give to inputs and targets: besides those of this package (`INPUT_KEYS`, `TARGET_KEYS`) those of
MedMNIST (``train_images``, ``train_labels``), of Keras (``x_train``, ``y_train``) and of scikit-learn (``data``,
``target``) are known, and splits that lie side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from riskaudit.errors import SamplesError
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.text import clean, listing
from riskaudit.tables import TableEncoding

_LARGEST_FILE = 2**24
INPUT_KEYS = ("images", "x", "inputs")
TARGET_KEYS = ("labels", "y", "targets")
_EVERY_INPUT_KEY = (*INPUT_KEYS, "data", "X")
_EVERY_TARGET_KEY = (*TARGET_KEYS, "target", "label", "Y")
SPLITS = ("train", "val", "valid", "validation", "dev", "test")


@dataclass(frozen=True)
class Reading:
    """What readers of all formats are told.

    Attributes:
        channels: input channels of the model; tells image layouts apart and converts image files.
        limit: take so many, the first ones, in image folders spread over the classes, and read no further.
        plain_ids: keep names of files and class folders, and id columns, instead of hashing them.
        loss: decides whether targets are class numbers or floats; None goes by their dtype.
        classes: the model's classes by name, in the order of its outputs.
        num_classes: how many classes the model has, None if unknown.
        scale: what stored values are divided by; None for 255 where they have 8 bits, else 1.
        split: of a source that holds several, train or test say.
        labelled: targets are needed; without, absent ones are zeros.
        encoding: how columns of a table become inputs; without one they are numbers.
    """

    channels: int | None = None
    limit: int | None = None
    plain_ids: bool = False
    loss: Loss | None = None
    classes: Sequence[str] | None = None
    num_classes: int | None = None
    scale: float | None = None
    split: str | None = None
    labelled: bool = True
    encoding: TableEncoding | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SamplesError(f"expected `limit` of at least 1, found {self.limit}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise SamplesError(f"expected `scale` above 0, found {self.scale:g}")
        if self.scale is not None and self.encoding is not None:
            raise SamplesError("`scale` and `encoding` both say what becomes of values; leave `scale` out")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise SamplesError("expected distinct names in `classes`, found one twice; name each output once, in order")


def class_list(text: str) -> tuple[str, ...]:
    """Class names in order: separated by commas, or one a line in a file.

    Raises:
        SamplesError: the file can't be read, or there is no name.
    """
    path = Path(text)
    try:
        if path.is_file():
            if path.stat().st_size > _LARGEST_FILE:
                raise SamplesError(f"expected class names, one a line, in {clean(path.name)}, found more than 16 MiB")
            names: Sequence[str] = path.read_text(encoding="utf-8-sig").splitlines()
        else:
            names = text.split(",")
    except (OSError, UnicodeDecodeError, ValueError) as cause:
        raise SamplesError(
            f"can't read the class names in {clean(path.name)} ({type(cause).__name__}); save them as UTF-8, one a line"
        ) from cause
    classes = tuple(name.strip() for name in names if name.strip())
    if not classes:
        raise SamplesError("expected the names of the model's classes in `classes`, found none")
    return classes


def find_key(keys: Collection[str], wanted: Sequence[str], what: str, name: str) -> str:
    """The first of ``wanted`` among ``keys``.

    Raises:
        SamplesError: none is there; the message lists what was found.
    """
    key = next((key for key in wanted if key in keys), None)
    if key is None:
        actual = f"the keys {listing(keys, 6)}" if keys else "nothing"
        shown = wanted[: len(INPUT_KEYS)]
        raise SamplesError(f"expected {what} under {', '.join(shown)} in {name}, found {actual}; rename them")
    return key


def sample_keys(keys: Collection[str], reading: Reading, name: str) -> tuple[str, str | None]:
    """The keys of inputs and targets; None for targets that aren't there and aren't needed.

    Raises:
        SamplesError: one is missing, or the file holds several splits and none was chosen.
    """
    pattern = "{}"
    if reading.split is not None or not set(_EVERY_INPUT_KEY) & set(keys):
        splits = _splits(keys)
        if reading.split is None and len(splits) > 1:
            raise SamplesError(f"{name} holds the splits {', '.join(splits)}; choose one with `split`")
        if reading.split is not None and reading.split not in splits:
            actual = f"the splits {', '.join(splits)}" if splits else "no splits"
            raise SamplesError(
                f"expected the split {clean(reading.split, 30)} in {name}, found {actual}; choose another `split`"
            )
        pattern = splits.get(reading.split or next(iter(splits), ""), pattern)
    inputs, targets = ([pattern.format(key) for key in group] for group in (_EVERY_INPUT_KEY, _EVERY_TARGET_KEY))
    inputs_key = find_key(keys, inputs, "inputs", name)
    if not reading.labelled and not set(targets) & set(keys):
        return inputs_key, None
    return inputs_key, find_key(keys, targets, "targets", name)


def _splits(keys: Collection[str]) -> dict[str, str]:
    """What the usual name of inputs stands in, by split."""
    patterns: dict[str, str] = {}
    for key, split in product(_EVERY_INPUT_KEY, SPLITS):
        for pattern in (f"{split}_{{}}", f"{{}}_{split}"):
            if pattern.format(key) in keys:
                patterns.setdefault(split, pattern)
    return patterns
