"""Order statistics of noise: what stays the same when its entries change places, signs or tensors.

Of n independent normal scores z, the tail probabilities u = P(|Z| > |z|) are uniform. With u_(1) < ... < u_(n) and
u_(n+1) = 1, the ratios u_(j) / u_(k), j < k, between consecutive ranks of a ladder are independent and follow
Beta(j, k - j) exactly (Renyi, 1953; David and Nagaraja, Order Statistics, 2003, section 2.5). Two things are read off:

- the places of these ratios in their distributions, uniform and independent, on a ladder of ranks 1, 2, 3, ..., 16, 24,
  32, 48, ...: a fingerprint of the tensor's values whatever their order and signs, and of any scale once the scores are
  divided by their root mean square. Independent tensors' fingerprints hardly ever are near each other.
- the spacings k log(u_(k+1) / u_(k)) of the largest magnitudes, each ladder step being 1: independent and exponential.
  Where one draw stands in several places, many are near zero.

Values in few digits (float16, bfloat16, or noise rounded to a grid) tie although the noise is fresh: they are spread
over the width of their last digit first, and not looked at where that is too coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, erfc, gammaln

Scores = npt.NDArray[np.float64]
Fingerprint = npt.NDArray[np.float32]

# Tensors of fewer entries have too few ratios; ranks beyond these are not looked at, and spacings.
FEWEST, LAST_RANK, SPACINGS = 8, 4096, 64
# The widest last digit, in standard deviations of the noise, with which fingerprints and spacings are compared.
COARSEST_FINGERPRINT, COARSEST_SPACING = 2.0**-9, 2.0**-4
# Entries of which the width of the last digit is read off.
DIGITS = 4096
# Up to this rank a ladder has every one.
EVERY_RANK = 16
# By how much dividing by the root mean square may concentrate fingerprints, besides taking away one dimension.
CONCENTRATION = 10.0


@dataclass(frozen=True, eq=False)
class Extremes:
    """The largest magnitudes of normal scores.

    Attributes:
        count: of all entries.
        magnitudes: in descending order, those of the ranks up to ``LAST_RANK``.
        root_mean_square: of all entries.
        width: of the last digit.
    """

    count: int
    magnitudes: Scores
    root_mean_square: float
    width: float

    def fingerprint(self) -> Fingerprint:
        """Places of the ladder's ratios in their distributions; not a number where nothing can be said."""
        ranks = ladder(self.count)
        if self.width > COARSEST_FINGERPRINT or not self.root_mean_square > 0:
            return np.full(len(ranks) - 1, np.nan, np.float32)
        tails = _tails(self.magnitudes / self.root_mean_square, self.count)[ranks - 1]
        return np.asarray(betainc(ranks[:-1], np.diff(ranks), tails[:-1] / tails[1:]), np.float32)

    def crowding(self) -> float:
        """Minus the logarithms of the largest magnitudes' spacings, added up; large where values come again."""
        count = min(self.count, SPACINGS)
        if self.width > COARSEST_SPACING or count < FEWEST:
            return -math.inf
        tails = np.log(_tails(self.magnitudes[: count + 1], self.count)[: count + 1])
        spacings = np.arange(1, count + 1) * np.diff(tails)
        return -float(np.log(np.maximum(spacings, np.finfo(np.float64).tiny)).sum())


def extremes_of(scores: Scores, sizes: Sequence[int], width: float = 0.0) -> list[Extremes]:
    """The largest magnitudes of normal scores [P] in every tensor, and in all where there are several.

    ``width`` is that of the scores' last digits, from `digit_width`.
    """
    parts = np.split(scores, np.cumsum(sizes)[:-1]) if sizes else []
    largest = [_largest(part, width) for part in parts]
    squares = [float(part @ part) for part in parts]
    if len(sizes_of(sizes)) > len(sizes):
        largest.append(np.sort(np.concatenate(largest))[::-1][:LAST_RANK])
        squares.append(sum(squares))
    return [
        Extremes(count, top, math.sqrt(square / max(1, count)), width)
        for count, top, square in zip(sizes_of(sizes), largest, squares, strict=True)
    ]


def sizes_of(sizes: Sequence[int]) -> list[int]:
    """Sizes of the tensors, and of all together where several have entries."""
    return [*sizes, sum(sizes)] if sum(size > 0 for size in sizes) > 1 else list(sizes)


def digit_width(update: Scores, noise_std: float) -> float:
    """What the last digit of an update's [P] entries is worth, in standard deviations of its noise.

    That is the digit of their dtype, or the step of a grid that they were rounded to, before whatever division.
    """
    some = update[:: max(1, len(update) // DIGITS)]
    some = np.sort(some[some != 0])
    if not len(some):
        return 0.0
    mantissas, exponents = np.frexp(some)
    digits = (mantissas * 2.0**53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponents - 53)
    return max(float(np.median(lowest)), _grid_step(some)) / noise_std


def _grid_step(ordered: Scores) -> float:
    """The step of the grid that values lie on but for rounding in float32; 0 where they lie on none."""
    gaps = np.diff(ordered)
    gaps = gaps[gaps > 4 * float(np.finfo(np.float32).eps) * float(np.abs(ordered).max())]
    if not len(gaps):
        return 0.0
    near = gaps[gaps < 8.5 * gaps.min()]
    multiples = np.round(near / gaps.min())
    step = float(near @ multiples) / float(multiples @ multiples)
    # Gaps of values that lie anywhere are as near to a multiple in one of five cases.
    on_grid = np.abs(near - step * np.round(near / step)) < 0.1 * step
    return step if len(near) >= 16 and float(on_grid.mean()) > 0.8 else 0.0


@cache
def ladder(count: int) -> npt.NDArray[np.int64]:
    """Ranks 1, 2, ..., 16, 24, 32, 48, ... of a tensor; the last one is count + 1, whose tail is 1, unless far."""
    ranks = list(range(1, EVERY_RANK))
    while ranks[-1] < LAST_RANK:
        ranks.append(ranks[-1] + max(1, 2 ** (ranks[-1].bit_length() - 2) if ranks[-1] >= EVERY_RANK else 1))
    ranks = [rank for rank in ranks if rank <= count]
    return np.array([*ranks, count + 1] if count < LAST_RANK else ranks, dtype=np.int64)


@cache
def least_distance(steps: int, failure: float) -> float:
    """What the sum of the differences of two independent fingerprints falls below with at most this probability.

    Given the one, the other lies within the ball {|x|_1 <= d}, of volume (2 d)^m / m!, where its density is bounded;
    one dimension is left out for the root mean square.
    """
    free = steps - 1
    return 0.5 * math.exp((math.log(failure / CONCENTRATION) + float(gammaln(free + 1))) / free)


@cache
def most_crowded(count: int, failure: float) -> float:
    """What `Extremes.crowding` of this many spacings exceeds with at most this probability.

    Chernoff's bound: E x^-t = Gamma(1 - t) for an exponential x.
    """
    exponents = np.linspace(0.02, 0.98, 193)
    return float(((count * gammaln(1 - exponents) - math.log(failure)) / exponents).min())


def _largest(scores: Scores, width: float) -> Scores:
    """Magnitudes in descending order; ties of fresh values are spread over the width of their last digit."""
    magnitudes = np.abs(scores)
    if len(magnitudes) > 2 * LAST_RANK:
        magnitudes = np.partition(magnitudes, -LAST_RANK)[-LAST_RANK:]
    spread = width * (np.random.default_rng().random(len(magnitudes)) - 0.5)
    return np.sort(np.abs(magnitudes + spread))[::-1][:LAST_RANK]


def _tails(magnitudes: Scores, count: int) -> Scores:
    """u_(1), u_(2), ..., and after the last of all 1."""
    tails: Scores = erfc(magnitudes / math.sqrt(2))
    return np.append(tails, 1.0) if len(magnitudes) == count else tails
