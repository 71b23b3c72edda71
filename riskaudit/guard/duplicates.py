"""Names of samples, the same for all spellings of an id and for flips and turns of an input."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata

import numpy as np
from torch import Tensor

from riskaudit.inputs.duplicates import duplicate_labels
from riskaudit.inputs.views import is_image, turned

__all__ = ["canonical_id", "content_id", "duplicate_labels"]

_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.0*)?")


def canonical_id(name: object) -> str:
    """An id as text, the same for all spellings of one: 7, 7.0, "7", " 7 ", and Unicode's forms of a letter.

    Case and leading zeros count, since ids may differ in nothing else.
    """
    if isinstance(name, Tensor | np.ndarray | np.generic) and math.prod(name.shape) == 1:
        name = name.item()
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFKC", str(name)).strip()
    if isinstance(name, float) and math.isfinite(name) and name.is_integer():
        text = str(int(name))
    match = _NUMBER.fullmatch(text)
    return str(int(text.split(".")[0])) if match else text


def content_id(sample: Tensor) -> str:
    """A digest of one input [...], the same in every floating-point type and for its flips and quarter turns."""
    values = sample.detach().cpu().half()
    forms = turned(values) if is_image(sample) else [values]
    return hashlib.sha256(min(form.contiguous().numpy().tobytes() for form in forms)).hexdigest()
