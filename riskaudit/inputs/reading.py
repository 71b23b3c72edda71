"""How samples are to be read: what the user said, and what the model tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from riskaudit.errors import SamplesError
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.text import clean

_LARGEST_FILE = 2**24


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

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SamplesError(f"expected `limit` of at least 1, found {self.limit}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise SamplesError(f"expected `scale` above 0, found {self.scale:g}")
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
