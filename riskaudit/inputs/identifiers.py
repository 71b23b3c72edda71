"""Names of samples that tell a reader of the report nothing.

A file name or an id column often names a person. Reports carry a keyed hash instead: BLAKE2b of the
name, keyed with a hash of the data's own content. The key isn't published (the report's SHA-256 of the
data is another function of it), so whoever has the report but not the data can't confirm a guessed
name, while whoever has the data finds the sample again, and the same data always give the same ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from riskaudit.inputs.text import clean

_PERSON = b"riskaudit ids v1"
_BLOCK = 2**20


def content_key(chunks: Iterable[bytes]) -> bytes:
    """A secret of the data's content: personalised BLAKE2b over ``chunks``, 32 bytes."""
    digest = hashlib.blake2b(digest_size=32, person=_PERSON)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def file_chunks(path: Path) -> Iterable[bytes]:
    """A file's content in blocks."""
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block


def hide_ids(names: Sequence[str], key: bytes) -> tuple[str, ...]:
    """12 hexadecimal characters for each name; equal ones get a suffix."""
    hashes = [hashlib.blake2b(name.encode("utf-8", "replace"), key=key, digest_size=6).hexdigest() for name in names]
    return _distinct(hashes)


def plain_ids(names: Sequence[str]) -> tuple[str, ...]:
    """The names themselves without control characters; equal ones get a suffix."""
    return _distinct([clean(name, 200) or "unnamed" for name in names])


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    taken = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        unique, number = name, 2
        while unique in seen or (unique != name and unique in taken):
            unique, number = f"{name}-{number}", number + 1
        seen.add(unique)
        result.append(unique)
    return tuple(result)


def hash_tensors(digest: hashlib._Hash, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Add names, shapes, dtypes and bytes of tensors to a hash."""
    for name, tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(held.shape)} {held.dtype}".encode())
        # By way of uint8, since numpy has no bfloat16.
        digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b"")
