"""Whether noise is drawn anew for every entry of an update: not one draw in several places, nor rows of few vectors.

Every test is of normal scores that are independent where the noise has its law, and rejects those with at most the
probability that it states:

- crowding: values that come several times, in whatever places and with whatever signs, make spacings of the largest
  magnitudes small (`riskaudit.guard.noise.order`). Per tensor, and over all.
- rank: rows (or columns, or what belongs to one place of a kernel) that are equal, multiples or sums of few vectors
  make the determinant of their Gram matrix small. That of m independent rows of n entries is a product of independent
  chi-squared variables with n, n - 1, ..., n - m + 1 degrees of freedom (Bartlett, 1933).
- period: entries that agree with those some places further on, wholly or in sign. At any distance the products of signs
  are independent signs themselves, of which Hoeffding's inequality bounds the sum.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.special import gammaln

from riskaudit.guard.noise.order import FEWEST, SPACINGS, Extremes, most_crowded
from riskaudit.guard.noise.traces import REJECTION

Scores = npt.NDArray[np.float64]

# Vectors and entries of each that are looked at, drawn anew every time.
VECTORS, ENTRIES = 64, 512
# Neighbouring entries, elsewhere every time, among which periods are looked for; tensors of fewer have none.
BLOCK, SHORTEST = 2**14, 64


def noise_pattern(scores: Scores, extremes: Sequence[Extremes], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why normal scores [P] of noise on tensors of these shapes aren't independent; None where they can be."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    failure = REJECTION / 3
    names = [*(f" in {name}" for name in shapes), ""]
    for where, largest in zip(names, extremes, strict=False):
        count = min(largest.count, SPACINGS)
        if count >= FEWEST and largest.crowding() > most_crowded(count, failure / len(names)):
            return _reason(where, "values come several times")
    parts = np.split(scores, np.cumsum(sizes)[:-1]) if sizes else []
    for where, part, shape in zip(names, parts, shapes.values(), strict=False):
        if _is_dependent(part.reshape(shape), failure / len(sizes)):
            return _reason(where, "rows or columns are equal or depend on each other")
        if _is_periodic(part, failure / len(sizes)):
            return _reason(where, "entries follow those some places before")
    return None


def _reason(where: str, what: str) -> str:
    return f"the noise on this update isn't fresh in every entry{where}: {what}; draw each entry's noise by itself"


def _is_dependent(part: Scores, failure: float) -> bool:
    """Whether rows of a tensor's unfolding along some axis depend on each other; which are drawn anew every time."""
    generator = np.random.default_rng()
    for axis, size in enumerate(part.shape):
        columns = min(part.size // max(1, size), ENTRIES)
        rows = min(size, columns // 2, VECTORS)
        if rows < 2:
            continue
        matrix = np.moveaxis(part, axis, 0).reshape(size, -1)
        taken = zip(matrix.shape, (rows, columns), strict=True)
        vectors = matrix[np.ix_(*(generator.choice(count, few, replace=False) for count, few in taken))]
        sign, logarithm = np.linalg.slogdet(vectors @ vectors.T)
        if sign <= 0 or logarithm < _least_determinant(rows, columns, failure / (2 * part.ndim)):
            return True
    return False


@cache
def _least_determinant(rows: int, columns: int, failure: float) -> float:
    """What the logarithm of the determinant falls below with at most this probability, by Chernoff's bound."""
    degrees = np.arange(columns - rows + 1, columns + 1)[:, None] / 2
    exponents = np.linspace(0.005, 0.995, 199) * degrees[0]
    moments = (gammaln(degrees - exponents) - gammaln(degrees) - exponents * math.log(2)).sum(0)
    return float(((math.log(failure) - moments) / exponents).max())


def _is_periodic(part: Scores, failure: float) -> bool:
    if len(part) > BLOCK:
        first = secrets.randbelow(len(part) - BLOCK)
        part = part[first : first + BLOCK]
    count = len(part)
    if count < SHORTEST:
        return False
    signs = np.where(part > 0, np.float32(1), np.float32(-1))
    length = fft.next_fast_len(2 * count, real=True)
    sums = np.abs(fft.irfft(np.abs(fft.rfft(signs, length)) ** 2, length)[1:count])
    # A rounding error of float32 is far below one term.
    beyond = np.maximum(sums - 1, 0) ** 2 > 2 * math.log(2 * count / failure) * np.arange(count - 1, 0, -1)
    return bool(beyond.any())
