"""What samples and updates are, whatever form they have: digests of samples, and updates that are nearly one."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import deque

import numpy as np
import torch
from torch import Tensor

# Entries of a projection, and how many of them are held.
BUCKETS, HELD = 128, 4096
# Updates that differ by less, relative to their norm, are one: two draws of noise on them average out like on one.
NEARLY = 1e-2


def sample_digest(inputs: Tensor, target: Tensor) -> bytes:
    """Of one sample, the same in every dtype of its input [...] and target [...], and for one-hot and class targets."""
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


class CleanUpdates:
    """Updates that were sanitised, before any noise, as secret projections that keep distances and hide the rest.

    Every entry is added with a random sign to one of 128 sums at random (a count sketch), so that the squared norm of
    a difference is kept within about an eighth. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._seed, self._lock = secrets.randbits(128), threading.Lock()
        self._held: deque[tuple[str, np.ndarray, str]] = deque(maxlen=HELD)

    def key_of(self, mean: Tensor, model_digest: str, key: str) -> str:
        """The key of an earlier update that is nearly this one [P] at the same weights; ``key`` where there is none."""
        if not self._held:
            return key
        own = self._projected(mean)
        limit = NEARLY * float(np.linalg.norm(own))
        with self._lock:
            for digest, other, earlier in self._held:
                same = digest == model_digest and len(other) == len(own)
                if same and float(np.linalg.norm(other - own)) <= limit:
                    return earlier
        return key

    def remember(self, mean: Tensor, model_digest: str, key: str) -> None:
        """Keep the projection of an update [P] under its key."""
        with self._lock:
            self._held.append((model_digest, self._projected(mean), key))

    def _projected(self, mean: Tensor) -> np.ndarray:
        values = mean.detach().to(device="cpu", dtype=torch.float64).numpy()
        if len(values) <= BUCKETS:
            return values.copy()
        drawn = np.random.default_rng(self._seed).integers(0, 2 * BUCKETS, len(values), dtype=np.uint8)
        signed = np.where(drawn < BUCKETS, values, -values)
        sums: np.ndarray = np.bincount(drawn % BUCKETS, weights=signed, minlength=BUCKETS)
        return sums
