"""Arrays from any format to samples: names of keys, layout of images, dtype of targets.

Every format ends in `RawSamples`; `to_inputs` and `to_targets` bring its tensors to the one form that
the audit works with.

Labels become class numbers. Whole numbers are class numbers. Words are numbered by name where the model's classes are
given; else by their place among all words of the source, sorted, which is right only if the source knows every class of
the model: that is recorded, and checked against the model's outputs (see `compatibility`). A client often holds some
classes only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.reading import Reading, sample_keys
from riskaudit.inputs.text import clean, shape_text

Numbering: TypeAlias = Literal["numbers", "position", "classes"]
# More different words than this are no classes.
MAX_CLASSES = 100_000
NUMBER = re.compile(r"\d{1,9}", re.ASCII)
IMAGE_CHANNELS = (1, 3)
# The largest values of 8 and of 16 bits.
BYTE, _SHORT = 255.0, 65535.0
_FEWEST_PIXELS = 16
# float64 copies of what a file holds: beyond this, `limit` is the answer.
MAX_INPUT_BYTES = 32 * 2**30


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


@dataclass(frozen=True)
class RawSamples:
    """Inputs [N, ...] and labels as a file holds them; no labels where none are needed.

    ``ids`` are identifiers of the samples in their source, None where they are just numbered. Names of classes that
    may be people's are hidden (``private_classes``). ``notes`` are sentences for the reader of the audit.
    """

    inputs: Tensor
    labels: Numbered | None = None
    ids: Sequence[str] | None = None
    private_classes: bool = False
    notes: tuple[str, ...] = ()


def as_tensor(value: Any, what: str, name: str) -> Tensor:
    """A tensor or array of numbers as a tensor; unsigned integers beyond 8 bits become int64.

    Raises:
        SamplesError: not numbers.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise SamplesError(f"{what} in {name} aren't a plain real tensor; save them as floats or integers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise SamplesError(f"{what} in {name} claim more values than are stored; save them again")
        return value.detach().cpu()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as cause:
        raise SamplesError(f"{what} in {name} aren't an array of one shape ({clean(cause)}); stack them") from cause
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise SamplesError(f"{what} in {name} have dtype {clean(array.dtype, 30)}, expected numbers; convert them")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def raw_from_mapping(content: Mapping[str, Any], name: str, reading: Reading) -> RawSamples:
    """Inputs, targets and optionally ``ids`` and ``class_names`` from named arrays.

    Raises:
        SamplesError: a key is missing or holds something else.
    """
    inputs_key, targets_key = sample_keys(content, reading, name)
    inputs = as_tensor(content[inputs_key], "inputs", name)
    ids, class_names = _texts(content.get("ids"), "ids", name), _texts(content.get("class_names"), "class_names", name)
    if targets_key is None:
        return RawSamples(inputs, None, ids)
    labels = numbered_array(content[targets_key], reading, name, inputs)
    if class_names is not None and labels.class_names is None:
        labels = replace(labels, class_names=tuple(class_names))
    return RawSamples(inputs, labels, ids)


def numbered_array(value: Any, reading: Reading, name: str, inputs: Tensor) -> Numbered:
    """Targets of an array or list; words are numbered as `number_labels` does.

    Words come whole, where of the inputs a limit may have left the first.

    Raises:
        SamplesError: neither numbers nor words.
    """
    words = _words(value)
    if words is not None:
        texts = _stripped(words[: reading.limit])
        labels = number_labels(texts, lambda: _stripped(np.unique(words)), reading, name)
        return labels if len(texts) == (len(inputs) if inputs.ndim else 0) else labels.of(len(words))
    return renumber(as_tensor(value, "targets", name), reading, name)


def _words(value: Any) -> np.ndarray[Any, Any] | None:
    """A row of texts as an array; None for anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, str | bytes) for each in value):
        value = np.array(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "US" or value.size != len(np.atleast_1d(value)):
        return None
    return value.reshape(-1)


def _stripped(words: np.ndarray[Any, Any]) -> list[str]:
    texts = (each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in words.tolist())
    return [text.strip() for text in texts]


def _texts(value: Any, what: str, name: str) -> list[str] | None:
    if value is None:
        return None
    items = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise SamplesError(f"{what} in {name} aren't a list of names; store one per entry")
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in items]


def check_lengths(raw: RawSamples, name: str) -> Numbered:
    """The labels, zeros where there are none; zero samples, or inputs, targets and ids of other length are refused.

    Raises:
        SamplesError: see above.
    """
    count = len(raw.inputs) if raw.inputs.ndim else 0
    labels = raw.labels or Numbered(torch.zeros(count, dtype=torch.float64))
    if raw.inputs.ndim == 0 or labels.targets.ndim == 0:
        raise SamplesError(f"inputs and targets in {name} are single numbers, expected one row per sample")
    if count == 0 or raw.inputs.numel() == 0:
        raise SamplesError(f"{name} holds no samples; expected at least one")
    for what, values in (("targets", labels.targets), ("ids", raw.ids)):
        if values is not None and len(values) != count:
            raise SamplesError(f"{name} holds {count} inputs but {len(values)} {what}; expected one per input")
    return labels


def first_row(marks: Tensor) -> int | None:
    """The first row of truth values [N, ...] that holds a true one."""
    rows = marks.reshape(len(marks), -1).any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None


def to_inputs(inputs: Tensor, channels: int | None, name: str, scale: float | None = None) -> Tensor:
    """Inputs [N, *S] as float64 in data units; images as [N, C, H, W].

    Values are divided by ``scale``; without one uint8 values are divided by 255 and everything else keeps its numbers.

    Args:
        inputs: [N, F], [N, H, W], [N, C, L], [N, C, H, W] or [N, H, W, C].
        channels: C that the model takes, None if unknown; tells the last two apart.
        name: for messages.
        scale: what values are divided by.

    Raises:
        SamplesError: no layout has that many channels, too large, or NaN or infinite values.
    """
    if inputs.numel() * 8 > MAX_INPUT_BYTES:
        raise SamplesError(
            f"{name} holds {inputs.numel()} input values, too many to audit at once; take fewer samples with `limit`"
        )
    values = inputs.to(torch.float64)
    if scale is not None or inputs.dtype == torch.uint8:
        values = values / (BYTE if scale is None else scale)
    values = _channels_second(values, channels, name)
    first = first_row(~torch.isfinite(values))
    if first is not None:
        raise SamplesError(f"sample {first} in {name} holds NaN or infinite values; mend or leave out that sample")
    return values.contiguous()


def _channels_second(values: Tensor, channels: int | None, name: str) -> Tensor:
    if values.ndim == 1:
        return values.unsqueeze(1)
    shape = tuple(values.shape)
    if values.ndim == 3 and shape[1] != channels:
        if channels is not None and shape[2] == channels:
            return values.transpose(1, 2)
        if channels in (None, 1):
            return values.unsqueeze(1)
        raise SamplesError(
            f"the model takes {channels} channels, but {name} holds inputs of shape {shape_text(shape)} (N, H, W); "
            "use the data that the model was trained on"
        )
    if values.ndim == 4 and channels is None and shape[1] not in IMAGE_CHANNELS and shape[3] in IMAGE_CHANNELS:
        # The model doesn't tell, but only one reading makes images.
        return values.permute(0, 3, 1, 2)
    if values.ndim == 4 and channels is not None and shape[1] != channels:
        if shape[3] == channels:
            return values.permute(0, 3, 1, 2)
        raise SamplesError(
            f"the model takes {channels} channels, but {name} holds inputs of shape {shape_text(shape)}, expected "
            "(N, C, H, W) or (N, H, W, C); use the data that the model was trained on"
        )
    return values


def range_notes(stored: Tensor, inputs: Tensor, scale: float | None) -> tuple[str, ...]:
    """What to say of values stored as [N, ...], audited as [N, *S], in a range that a model is seldom trained on.

    A user who chose the scale needs no note.
    """
    if scale is not None or not inputs.numel():
        return ()
    dtype = str(stored.dtype).removeprefix("torch.")
    if stored.dtype == torch.uint8:
        if int(stored.max()) == 1:
            return (f"values from 0 to 1 as {dtype} were divided by 255, as of 8-bit images; `scale=1` keeps them",)
        return ()
    # Columns of a table may be anything; many columns of whole numbers from 0 on are pixels.
    low, high = float(inputs.min()), float(inputs.max())
    pixels = inputs.ndim > 2 or (inputs.shape[1] >= _FEWEST_PIXELS and bool((inputs == inputs.round()).all()))
    if not pixels or low < 0 or high <= 2 or high > _SHORT:
        return ()
    scale = BYTE if high <= BYTE else _SHORT
    return (
        f"values from {low:g} to {high:g} as {dtype} are audited as they are; if the model was trained on values from "
        f"0 to 1, `scale={scale:g}` divides them",
    )


def are_images(inputs: Tensor) -> bool:
    """Whether inputs [N, *S] can be shown as grey or colour images."""
    return inputs.ndim == 4 and inputs.shape[1] in IMAGE_CHANNELS


def to_targets(targets: Tensor, loss: Loss | None, name: str) -> Tensor:
    """Targets as int64 [N] (class numbers) or float64 [N, ...].

    Raises:
        SamplesError: NaN, or fractions where the loss wants class numbers.
    """
    if targets.is_floating_point():
        targets = targets.to(torch.float64)
        bad = first_row(~torch.isfinite(targets))
        if bad is not None:
            raise SamplesError(f"sample {bad} in {name} has a NaN or infinite target; mend it")
    else:
        targets = targets.to(torch.int64)
    if loss is None or loss.kind == "custom":
        return targets.contiguous()
    if loss.kind == "regression":
        return targets.to(torch.float64).contiguous()
    whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    if targets.ndim > 1 and targets.shape[1] == 1 and loss.kind == "classification" and whole:
        targets = targets.squeeze(1)
    if loss.kind == "classification" and targets.is_floating_point() and targets.ndim == 1:
        if not whole:
            raise SamplesError(
                f"expected class numbers in {name} for {loss.name}, found fractions; choose another `loss`"
            )
        targets = targets.to(torch.int64)
    return targets.contiguous()
