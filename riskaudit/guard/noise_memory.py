"""What a guard remembers of earlier rounds' noise: noise that comes again can be taken off, by a difference of updates.

Of every round that let something leave, a trace is kept of the noise on its update, and compared with later rounds':

- per tensor, the signs of up to 1024 sums of entries, each entry with a secret sign of its own. Of independent noise,
  half of them agree; equal, scaled, negated or correlated noise shows in how many do, tensor by tensor and over all.
- per tensor of 64 entries and more, the signs of its first 64: noise from one seed begins alike in tensors of any size,
  so each is compared with all others, of the same round too.
- of tensors of up to 128 entries, the noise itself: the cosine of two that are independent has a known law.

Together they reject independent noise with a probability of 1e-9 per round. Equal noise in one tensor is found from 3
entries on, as far as rounding lets it be equal. Noise of correlation r in n signs is found where
2 asin(|r|) sqrt(n) / pi exceeds about 8 (half the time) or 11 (nearly always): from r = 0.51 on in one large tensor,
0.1 over 30,000 signs. Noise shifted within a tensor, or of more than 1024 rounds ago, is not found.

Nothing of it is written anywhere: signs of noise and an update together say something of the gradient.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betainc
from scipy.stats import binom
from torch import Tensor

from riskaudit.guard.decision import Decision
from riskaudit.guard.noise_tests import REJECTION

Signs = npt.NDArray[np.uint8]
# Rounds that are compared with; how many signs a tensor has at most; entries at a tensor's head; tensors with one.
ROUNDS, SIGNS, HEAD, HEADS = 1024, 1024, 64, 64
# Tensors up to so many entries are compared entry by entry.
SMALL = 128
# Digests of sanitised updates; entries of results that can be handed out again, though always the last one.
DIGESTS, ENTRIES = 2**16, 2**22


@dataclass(frozen=True, eq=False)
class Trace:
    """Of the noise on one update; see the module.

    Attributes:
        digest: of the update as the client handed it in.
        sizes: entries of each tensor.
        signs: per tensor, packed to whole bytes, one behind the other.
        heads: one word per tensor that has a head.
        small: scores of the small tensors, by place.
    """

    digest: str
    sizes: tuple[int, ...]
    signs: Signs
    heads: npt.NDArray[np.uint64]
    small: Mapping[int, npt.NDArray[np.float64]]


class NoiseMemory:
    """Traces and sanitised results of one guard, in its process only; safe to share between threads."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._traces: deque[Trace] = deque(maxlen=ROUNDS)
        self._results: OrderedDict[str, Decision | None] = OrderedDict()

    def trace(self, scores: Tensor, sizes: Sequence[int], digest: str) -> Trace:
        """Of scores [P] of noise on tensors of these sizes."""
        keyed = self._signs(max(sizes, default=0))
        parts = [part.numpy() for part in torch.split(scores, list(sizes))]
        signs = [_packed(_sums(part * keyed[: len(part)], min(SIGNS, len(part)))) for part in parts if len(part)]
        heads = [_packed(part[:HEAD]) for part in parts if len(part) >= HEAD][:HEADS]
        small = {place: part.copy() for place, part in enumerate(parts) if 3 <= len(part) <= SMALL}
        words = np.concatenate([*heads, np.zeros(0, np.uint8)]).view(np.uint64)
        return Trace(digest, tuple(sizes), np.concatenate([*signs, np.zeros(0, np.uint8)]), words, small)

    def refuse_or_remember(self, own: Trace, further: Sequence[Trace] = ()) -> str | None:
        """Why the noise isn't independent of earlier rounds'; where it is, the traces are kept, and None returned.

        An update that left before, bit by bit, tells nothing new, and is not compared with itself.
        """
        with self._lock:
            earlier = [one for one in self._traces if one.digest != own.digest]
            problem = repetition(own, earlier)
            if problem is None and len(earlier) == len(self._traces):
                self._traces.extend([own, *further])
            return problem

    def sanitised(self, key: str) -> tuple[bool, Decision | None]:
        """Whether an update was sanitised before, and what was decided; None where that is no longer held."""
        with self._lock:
            return key in self._results, self._results.get(key)

    def remember_result(self, key: str, decision: Decision) -> Decision:
        """Keep a sanitised result; returns the first one where another thread was faster."""
        with self._lock:
            first = self._results.get(key)
            if first is not None:
                return first
            self._results[key] = decision
            held = 0
            for other, one in reversed(list(self._results.items())):
                held += 0 if one is None else sum(torch.as_tensor(value).numel() for value in _values(one.update))
                if held > ENTRIES and other != key:
                    self._results[other] = None
            while len(self._results) > DIGESTS:
                self._results.popitem(last=False)
            return decision

    def _signs(self, count: int) -> npt.NDArray[np.float64]:
        """The secret sign of every entry of a tensor."""
        stream = hashlib.shake_256(self._key).digest(-(-count // 8))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=count)
        return np.where(bits, 1.0, -1.0)


def repetition(own: Trace, earlier: Sequence[Trace]) -> str | None:
    """Why noise isn't independent of that of earlier rounds, or within its own; None where it can be."""
    heads = np.concatenate([own.heads, *(one.heads for one in earlier)])
    allowed = _least_differing(HEAD, REJECTION / 3 / (HEADS * HEADS * (ROUNDS + 1)))
    for place, head in enumerate(own.heads):
        differing = np.bitwise_count(heads[place + 1 :] ^ head)
        if bool(((differing <= allowed) | (differing >= HEAD - allowed)).any()):
            return _again("one of its tensors begins as another one did, of this round or of an earlier one")
    alike = [one for one in earlier if one.sizes == own.sizes]
    if not alike:
        return None
    counts = [min(SIGNS, size) for size in own.sizes if size]
    starts = np.cumsum([0, *(-(-count // 8) for count in counts)])[:-1]
    failure = REJECTION / 3 / (ROUNDS * (len(counts) + 1))
    differing = np.bitwise_count(np.stack([one.signs for one in alike]) ^ own.signs).astype(np.int64)
    each = np.add.reduceat(differing, starts, axis=1)
    every = np.concatenate([each, each.sum(1, keepdims=True)], axis=1)
    totals = np.array([*counts, sum(counts)])
    least = np.array([_least_differing(int(total), failure) for total in totals])
    if bool(((every <= least) | (every >= totals - least)).any()):
        return _again("it is equal to or correlated with that of an earlier round")
    for place, scores in own.small.items():
        for one in alike:
            if _chance_of_cosine(scores, one.small[place]) < failure:
                return _again("in a small tensor it is a multiple of that of an earlier round")
    return None


def _again(why: str) -> str:
    return f"the noise on this update isn't fresh: {why}, so that a difference shows what it hides; draw noise anew"


def _values(update: Any) -> list[Tensor]:
    values: Iterable[Tensor] = update.values() if isinstance(update, Mapping) else update
    return list(values)


def _sums(signed: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Of the entries whose places are the same modulo ``count``."""
    whole = len(signed) // count * count
    sums: npt.NDArray[np.float64] = signed[:whole].reshape(-1, count).sum(0)
    sums[: len(signed) - whole] += signed[whole:]
    return sums


def _packed(sums: npt.NDArray[np.float64]) -> Signs:
    """Signs as bits; that of a zero, which rounding makes, is drawn."""
    positive = sums > 0
    (zeros,) = np.nonzero(sums == 0)
    positive[zeros] = np.frombuffer(secrets.token_bytes(len(zeros)), np.uint8) & 1
    return np.packbits(positive)


@cache
def _least_differing(count: int, failure: float) -> int:
    """The largest number of differing signs, of ``count``, that is less likely than ``failure``; -1 where none is.

    Both ends count: as many may be equal as differ.
    """
    found = int(binom.ppf(failure / 2, count, 0.5))
    while found >= 0 and float(binom.cdf(found, count, 0.5)) > failure / 2:
        found -= 1
    return found


def _chance_of_cosine(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Of a cosine so far from 0 between independent normal vectors [n]: I_s((n - 1) / 2, 1 / 2), s = sin^2."""
    lengths = float(first @ first), float(second @ second)
    if not min(lengths) > 0:
        return 0.0
    apart = second - (first @ second) / lengths[0] * first
    return float(betainc((len(first) - 1) / 2, 0.5, min(1.0, float(apart @ apart) / lengths[1])))
