"""Names of samples: the same for all spellings of an id, for flips and turns of an input, and in every dtype."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from numbers import Number
from uuid import UUID

import numpy as np
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.formatting import count
from riskaudit.inputs.duplicates import is_image
from riskaudit.inputs.pictures import turned

_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.0*)?")
# What Unicode lets a renderer ignore, beside the format characters (category Cf): joiners, fillers and selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")


def hidden_ids(inputs: Tensor, names: Sequence[object] | None, salt: bytes) -> list[str]:
    """Ids of samples in a ledger and a log.

    Args:
        inputs: [B, ...]; their own content names them where nobody else does.
        names: of the samples; None where nobody gave any.
        salt: of a ledger or a guard.

    Raises:
        GuardError: not as many names as samples, or one that can't be a name.
    """
    plain = [content_id(sample) for sample in inputs] if names is None else [canonical_id(name) for name in names]
    if len(plain) != len(inputs):
        raise GuardError(f"expected {count(len(inputs), 'id')}, one per sample, found {len(plain)}")
    return [hidden_id(name, salt) for name in plain]


def hidden_id(name: str, salt: bytes) -> str:
    """16 hexadecimal characters that only the salt connects to a name."""
    return hashlib.blake2b(name.encode("utf-8", "replace"), key=salt, digest_size=8).hexdigest()


def canonical_id(name: object) -> str:
    """An id as text, the same for all spellings of one: 7, 7.0, "7", " 7 ", and Unicode's forms of a letter.

    Case and leading zeros count, since ids may differ in nothing else.

    Args:
        name: text, bytes, a number, a UUID, or a tuple of them; other objects print as something else in every process.

    Raises:
        GuardError: it is none of these.
    """
    if isinstance(name, Tensor | np.ndarray | np.generic) and math.prod(name.shape) == 1:
        name = name.item()
    if isinstance(name, tuple):
        return str(tuple(canonical_id(part) for part in name))
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    if not isinstance(name, str | Number | Decimal | UUID):
        raise GuardError(
            f"expected ids that are text, bytes or numbers, found a {type(name).__name__}; give every sample a name "
            "that is the same in every round"
        )
    visible = "".join(letter for letter in str(name) if unicodedata.category(letter) != "Cf")
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _INVISIBLE.sub("", visible))).strip()
    if isinstance(name, float) and math.isfinite(name) and name.is_integer():
        text = str(int(name))
    match = _NUMBER.fullmatch(text)
    return str(int(text.split(".")[0])) if match else text


def content_id(sample: Tensor) -> str:
    """A digest of one input [...], the same in every floating-point type and for its flips and quarter turns."""
    values = sample.detach().cpu().half()
    forms = turned(values) if is_image(sample) else [values]
    return hashlib.sha256(min(form.contiguous().numpy().tobytes() for form in forms)).hexdigest()


def sample_digest(inputs: Tensor, target: Tensor) -> bytes:
    """Digest of one sample, the same in every dtype of its input [...] and target [...], one-hot or a class number."""
    digest = hashlib.sha256()
    for part in (inputs.detach().double(), _class_numbers(target.detach().double())):
        digest.update(repr(tuple(part.shape)).encode())
        # Of two zeros that are equal the digests are.
        digest.update((part.cpu() + 0.0).contiguous().numpy().tobytes())
    return digest.digest()


def _class_numbers(target: Tensor) -> Tensor:
    """The class numbers [...] of a target [C, ...] that is one-hot along its first axis; another one [...] itself."""
    if not target.ndim or len(target) < 2:
        return target.reshape(()) if target.numel() == 1 else target
    ones = target == 1
    one_hot = bool((ones.sum(0) == 1).all()) and bool(((target == 0) | ones).all())
    return target.argmax(0).double() if one_hot else target
