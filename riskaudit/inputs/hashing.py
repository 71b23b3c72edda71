"""Hashes of tensors: what weights and data are recognised by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def hash_tensors(digest: hashlib._Hash, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Add names, shapes, dtypes and bytes of tensors to a hash."""
    for name, tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(held.shape)} {held.dtype}".encode())
        # By way of uint8, since numpy has no bfloat16.
        digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b"")
