"""Which arrays of a file are inputs and targets: the names that people give them, and splits that lie side by side.

Besides the names of this package (`INPUT_KEYS`, `TARGET_KEYS`) those of MedMNIST (``train_images``, ``train_labels``),
of Keras (``x_train``, ``y_train``) and of scikit-learn (``data``, ``target``) are known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from riskaudit.errors import SamplesError
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean, listing

INPUT_KEYS = ("images", "x", "inputs")
TARGET_KEYS = ("labels", "y", "targets")
_OTHER_INPUT_KEYS, _OTHER_TARGET_KEYS = ("data", "X"), ("target", "label", "Y")
SPLITS = ("train", "val", "valid", "validation", "dev", "test")


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
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    inputs, targets = (*INPUT_KEYS, *_OTHER_INPUT_KEYS), (*TARGET_KEYS, *_OTHER_TARGET_KEYS)
    prefix = suffix = ""
    if reading.split is not None or not set(inputs) & set(keys):
        splits = _splits(keys, inputs)
        split = reading.split if reading.split is not None else _only(splits, name)
        if split is not None and split not in splits:
            actual = f"the splits {', '.join(splits)}" if splits else "no splits"
            raise SamplesError(
                f"expected the split {clean(split, 30)} in {name}, found {actual}; choose another `split`"
            )
        if split is not None:
            prefix, suffix = splits[split]
    inputs = tuple(f"{prefix}{key}{suffix}" for key in inputs)
    targets = tuple(f"{prefix}{key}{suffix}" for key in targets)
    found_inputs = find_key(keys, inputs, "inputs", name)
    if not reading.labelled and not set(targets) & set(keys):
        return found_inputs, None
    return found_inputs, find_key(keys, targets, "targets", name)


def _splits(keys: Collection[str], inputs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What stands before and after the usual name of inputs, by split."""
    pairs: dict[str, tuple[str, str]] = {}
    for key in inputs:
        for split in SPLITS:
            for prefix, suffix in ((f"{split}_", ""), ("", f"_{split}")):
                if f"{prefix}{key}{suffix}" in keys:
                    pairs.setdefault(split, (prefix, suffix))
    return pairs


def _only(splits: Collection[str], name: str) -> str | None:
    if len(splits) > 1:
        raise SamplesError(f"{name} holds the splits {', '.join(splits)}; choose one with `split`")
    return next(iter(splits), None)
