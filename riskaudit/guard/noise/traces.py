"""Traces of the noise on updates, by which noise that comes again is noticed: a difference of updates takes it off.

Of the noise on an update a trace keeps, all under a secret key,

- per tensor, the signs of up to 1024 sums of entries, each entry with a secret sign of its own. Of independent noise,
  half of them agree; equal, scaled, negated or correlated noise shows in how many do, tensor by tensor and over all.
- per tensor of 64 entries and more, the signs of its first 64: noise from one seed begins alike in tensors of any size,
  so each is compared with all others, of the same round too.
- per tensor of 16 to 128 entries, the signs of 1024 secret normal projections of it. Two that differ are as frequent as
  the angle between the tensors is large, whose law is known for independent noise.
- per tensor of 3 to 15 entries, keyed hashes of its direction, up to its sign, rounded to four shifted grids.
- per tensor of 8 entries and more, and over all, a fingerprint of its magnitudes that doesn't depend on their order
  (`riskaudit.guard.noise.order`): noise that was permuted, rolled, reversed, given other signs, scaled or handed over
  to another tensor of as many entries, of the same round too.

Together they reject independent noise with a probability of 1e-9 per round. Equal noise in one tensor is found from 3
entries on, as far as rounding lets it be equal: of 3 entries in float64, of 4 and more in float32. Noise of correlation
r in n signs is found where 2 asin(|r|) sqrt(n) / pi exceeds about 8 (half the time) or 11 (nearly always): from r =
0.51 on in one large tensor, 0.1 over 30,000 signs. Noise shifted within a tensor isn't found, nor noise that is
correlated but not equal, and only in tensors of a few entries.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv, ndtri

from riskaudit.guard.noise.order import FEWEST, Extremes, extremes_of, ladder, least_distance, sizes_of

# Probability that true noise is taken for something else, over all tests of one kind together.
REJECTION = 1e-9
# Traces that are compared with; how many signs a tensor has at most; entries at a tensor's head; tensors with one.
TRACES, SIGNS, HEAD, HEADS = 1024, 1024, 64, 64
# Tensors of so many entries are projected, and those of at least so many, but fewer, are hashed.
SMALL, TINY = range(16, 129), range(3, 16)
GRIDS = 4
# Angles at which the law of a small tensor's signs is integrated.
ANGLES = 20_001

Bits = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Scores = npt.NDArray[np.float64]
Fingerprint = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trace:
    """What is remembered of the noise on one update; see the module.

    Attributes:
        digest: keyed, of the update as the client handed it in.
        sizes: entries of each tensor.
        signs: per tensor, packed to whole bytes, one behind the other.
        heads: one word per tensor that has a head.
        small: packed signs of projections, 1024 per small tensor.
        cells: ``GRIDS`` hashes per tiny tensor.
        orders: fingerprints of the tensors of at least ``FEWEST`` entries and of all, one behind the other.
    """

    digest: bytes
    sizes: tuple[int, ...]
    signs: Bits
    heads: Words
    small: Bits
    cells: Words
    orders: Fingerprint

    def packed(self) -> bytes:
        """The trace as bytes, which `unpacked` reads."""
        arrays = (self.signs, self.heads, self.small, self.cells, self.orders)
        parts = [self.digest, *(part.tobytes() for part in arrays)]
        header = json.dumps([list(self.sizes), [len(part) for part in parts]]).encode()
        return b"".join([len(header).to_bytes(8, "big"), header, *parts])

    @classmethod
    def unpacked(cls, stored: bytes) -> Trace:
        """The trace that `packed` wrote."""
        start = 8 + int.from_bytes(stored[:8], "big")
        sizes, lengths = json.loads(stored[8:start])
        ends = np.cumsum([start, *lengths])
        parts = [stored[first:last] for first, last in pairwise(ends)]
        signs, small = (np.frombuffer(parts[index], np.uint8) for index in (1, 3))
        heads, cells = (np.frombuffer(parts[index], np.uint64) for index in (2, 4))
        return cls(parts[0], tuple(sizes), signs, heads, small, cells, np.frombuffer(parts[5], np.float32))


def trace_of(
    key: bytes, scores: Scores, sizes: Sequence[int], digest: bytes, extremes: Sequence[Extremes] | None = None
) -> Trace:
    """The trace of noise on an update of this keyed digest; only traces under one key can be compared.

    The scores [P], on tensors of these sizes, are normal but for their scale.
    """
    flips, projections, failure = _flips(key, max(sizes, default=0)), _projections(key), _failure(sizes)
    parts = np.split(scores, np.cumsum(sizes)[:-1]) if sizes else []
    signs = [_packed(_sums(part * flips[: len(part)], min(SIGNS, len(part)))) for part in parts if len(part)]
    heads = [_packed(part[:HEAD]) for part in parts if len(part) >= HEAD][:HEADS]
    small = [_packed(projections[:, : len(part)] @ part) for part in parts if len(part) in SMALL]
    cells = [_cells(key, part, failure) for part in parts if len(part) in TINY]
    extremes = extremes_of(scores, sizes) if extremes is None else extremes
    orders = [largest.fingerprint() for largest in extremes if largest.count >= FEWEST]
    words = _joined(heads).view(np.uint64), _joined(small), np.array(cells, np.uint64).reshape(-1)
    return Trace(digest, tuple(sizes), _joined(signs), *words, np.concatenate([*orders, np.zeros(0, np.float32)]))


def keyed(key: bytes, digest: str) -> bytes:
    """A digest that says nothing without the key."""
    return hmac.digest(key, b"update:" + digest.encode(), "sha256")


@lru_cache(4)
def _projections(key: bytes) -> Scores:
    """Secret normal numbers [SIGNS, 128]."""
    stream = hashlib.shake_256(key + b"projections").digest(8 * SIGNS * SMALL[-1])
    words = np.frombuffer(stream, np.uint64) >> np.uint64(11)
    drawn: Scores = ndtri((words.astype(np.float64) + 0.5) * 2.0**-53)
    return drawn.reshape(SIGNS, -1)


@lru_cache(4)
def _flips(key: bytes, count: int) -> Scores:
    """The secret sign of every entry of a tensor [count]."""
    stream = hashlib.shake_256(key).digest(-(-count // 8))
    return np.where(np.unpackbits(np.frombuffer(stream, np.uint8), count=count), 1.0, -1.0)


def _cells(key: bytes, part: Scores, failure: float) -> list[int]:
    """Keyed hashes of where the line through a tiny tensor lies; of nothing, drawn."""
    length, secret = float(np.linalg.norm(part)), _projections(key)[:, : len(part)]
    if not length > 0:
        return [secrets.randbits(64) for _ in range(GRIDS)]
    line = part / (length if float(secret[0] @ part) > 0 else -length)
    # The secret shifts lie thousands of cells apart.
    corners = np.floor(line / _cell_width(len(part), failure) + 1e3 * secret[1 : 1 + GRIDS]).astype(np.int64)
    hashes = (hmac.digest(key + bytes([grid, len(part)]), row.tobytes(), "sha256") for grid, row in enumerate(corners))
    return [int.from_bytes(digest[:8], "big") for digest in hashes]


def repetition(newest: Trace, earlier: Sequence[Trace]) -> str | None:
    """Why noise isn't independent of that of earlier rounds, or within its own; None where it can be."""
    heads = np.concatenate([newest.heads, *(trace.heads for trace in earlier)])
    allowed = _least_differing(HEAD, REJECTION / 4 / (HEADS * HEADS * (TRACES + 1)))
    for index, head in enumerate(newest.heads):
        differing = np.bitwise_count(heads[index + 1 :] ^ head)
        if bool(((differing <= allowed) | (differing >= HEAD - allowed)).any()):
            return _again("one of its tensors begins as another one did, of this round or of an earlier one")
    alike = [trace for trace in earlier if trace.sizes == newest.sizes]
    if _is_rearranged(newest, alike):
        return _again("it has the values of noise of this or an earlier round in another order or another tensor")
    if not alike:
        return None
    counts = np.array([min(SIGNS, size) for size in newest.sizes if size], dtype=np.int64)
    differing = _differing(newest.signs, [trace.signs for trace in alike], -(-counts // 8))
    failure = _failure(newest.sizes)
    if _beyond(differing, _limits(tuple(counts), failure), counts) or _beyond(
        differing.sum(1, keepdims=True), _limits((int(counts.sum()),), failure), counts.sum()
    ):
        return _again("it is equal to or correlated with that of an earlier round")
    sizes = [size for size in newest.sizes if size in SMALL]
    small = _differing(newest.small, [trace.small for trace in alike], np.full(len(sizes), SIGNS // 8))
    least = np.array([_least_apart(size, failure) for size in sizes])
    if _beyond(small, least, SIGNS) or bool((np.stack([trace.cells for trace in alike]) == newest.cells).any()):
        return _again("in a small tensor it is equal to or correlated with that of an earlier round")
    return None


def _is_rearranged(newest: Trace, alike: Sequence[Trace]) -> bool:
    """Whether a tensor, or all, has the magnitudes of another one of its size, of this round or of an earlier one."""
    sizes = [size for size in sizes_of(newest.sizes) if size >= FEWEST]
    steps = [len(ladder(size)) - 1 for size in sizes]
    starts = np.cumsum([0, *steps])
    failure = REJECTION / 4 / (max(1, len(sizes)) ** 2 * (TRACES + 1))
    earlier = np.stack([newest.orders, *(trace.orders for trace in alike)])
    for size in set(sizes):
        first = np.array([start for start, other in zip(starts, sizes, strict=False) if other == size])
        prints = earlier[:, first[:, None] + np.arange(len(ladder(size)) - 1)]
        for number, fingerprint in enumerate(prints[0]):
            distances = np.abs(prints - fingerprint).sum(-1)
            # Of its own round, those that come later: it isn't compared with itself.
            distances[0, : number + 1] = np.inf
            if bool((distances < least_distance(prints.shape[-1], failure)).any()):
                return True
    return False


def _again(why: str) -> str:
    return f"the noise on this update isn't fresh: {why}, so that a difference shows what it hides; draw noise anew"


def _failure(sizes: Sequence[int]) -> float:
    """Probability that one comparison, of one tensor or of all together, rejects independent noise."""
    return REJECTION / 4 / (TRACES * (len(sizes) + 1))


def _differing(newest: Bits, others: Sequence[Bits], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many bits differ, [others, parts], of parts of these lengths in bytes."""
    if not len(lengths):
        return np.zeros((len(others), 0), np.int64)
    differing = np.bitwise_count(np.stack(others) ^ newest).astype(np.int64)
    return np.add.reduceat(differing, np.cumsum([0, *lengths])[:-1], axis=1)


def _beyond(differing: npt.NDArray[np.int64], least: npt.NDArray[np.int64], totals: npt.ArrayLike) -> bool:
    return bool(((differing <= least) | (differing >= np.asarray(totals) - least)).any())


@cache
def _limits(counts: tuple[int, ...], failure: float) -> npt.NDArray[np.int64]:
    return np.array([_least_differing(int(count), failure) for count in counts])


def _sums(signed: Scores, count: int) -> Scores:
    """Sums [count] of the entries whose indices are the same modulo ``count``."""
    whole = len(signed) // count * count
    sums: Scores = signed[:whole].reshape(-1, count).sum(0)
    sums[: len(signed) - whole] += signed[whole:]
    return sums


def _packed(sums: Scores) -> Bits:
    """Signs as bits; that of a zero, which rounding makes, is drawn."""
    positive = sums > 0
    (zeros,) = np.nonzero(sums == 0)
    positive[zeros] = np.frombuffer(secrets.token_bytes(len(zeros)), np.uint8) & 1
    return np.packbits(positive)


def _joined(parts: Sequence[Bits]) -> Bits:
    return np.concatenate([*parts, np.zeros(0, np.uint8)])


@cache
def _cell_width(size: int, failure: float) -> float:
    """Width of a grid's cells in which the lines of independent vectors [size] meet with at most this probability.

    Those that do are at most the cell's diagonal apart, and sin^2 of their angle follows Beta((n - 1) / 2, 1 / 2).
    """
    return math.sqrt(float(betaincinv((size - 1) / 2, 0.5, failure / GRIDS)) / size)


@cache
def _least_differing(count: int, failure: float) -> int:
    """The largest number of differing signs, of ``count``, that is less likely than ``failure``; -1 where none is.

    Both ends count: as many may be equal as differ.
    """
    return _largest(count, lambda most: float(bdtr(most, count, 0.5)) <= failure / 2)


@cache
def _least_apart(size: int, failure: float) -> int:
    """As `_least_differing`, of projections of independent vectors [size], whose angle has density sin^(n - 2)."""
    angles = np.linspace(0.0, math.pi, ANGLES)
    density = np.sin(angles) ** (size - 2)
    density /= density.sum()
    return _largest(SIGNS, lambda most: float(density @ bdtr(most, SIGNS, angles / math.pi)) <= failure / 2)


def _largest(count: int, rare: Callable[[int], bool]) -> int:
    """The largest number below half of ``count`` of which this is true; -1 where there is none."""
    return bisect_left(range((count + 1) // 2), True, key=lambda most: not rare(most)) - 1
