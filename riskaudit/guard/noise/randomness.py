"""Noise that protects: nobody can repeat it, so nobody can take it off again.

Its bits come from the operating system (`os.urandom`), with no state of ours in between: there is no seed to search or
to store, a forked process draws anew, and seeds that a caller sets elsewhere change nothing. A `torch.Generator` is
none of that: on the CPU it takes 32 bits of its seed. Noise that has to be drawn again, for an audit or a benchmark, is
`riskaudit.release.Noise`, and nothing here accepts it.

**Law.** A sign and a number U in (0, 1/2) go through the inverse distribution function in float64. U has 63 random
bits, and 127 below 2^-12, so that tails have the relative precision of float64: |z| reaches 13 standard deviations.

**Floating point.** Which float64 numbers x + z can take depends on x, and their last bits tell x apart (Mironov, On
significance of the least significant bits for differential privacy, CCS 2012, for Laplace; Jin, McMurtry, Rubinstein
and Ohrimenko, Are we there yet? Timing and floating-point attacks on differential privacy systems, S&P 2022, for
Gaussian noise). So the sum x + z, not z, is rounded to the multiples of a power of two, the step, which lie in the
dtype that leaves. The step is read off the noise's std and off the sum, hence rounding is a function of what would have
left anyway: it can't tell more. Every multiple within reach of the noise can come of every x. What is left are
differences of the multiples' probabilities, because a cell's ends are known to the precision of float64 only:
about 2^-52 |x + z| / step relative to the cell, at most 2^-28 in float32 and near 2^-38 where |x + z| is below 16 std.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from torch import Tensor

from riskaudit.errors import GuardError, SettingsError
from riskaudit.release.noise import Law

# The grid's step is 2^-FINENESS times the noise's std, rounded down to a power of two, where the dtype allows it; it
# adds step^2 / 12 to the variance, at most 1e-7 of the noise's.
FINENESS = 10
# The largest step, as a share of the std: it adds at most 1/192 to the variance.
COARSEST = 0.25
# Entries that are drawn at once, to bound memory.
CHUNK = 2**20
# Magnitudes below this are exact in float64, with bits to spare.
EXACT = 2**52


@final
@dataclass(frozen=True)
class SecureNoise:
    """Independent noise of mean zero that can't be drawn again; there is nothing to seed.

    Attributes:
        law: "gaussian" or "laplace".
        scale: standard deviation (gaussian) or b (laplace) per entry.

    Raises:
        SettingsError: another law, or a scale that isn't a finite number of at least 0.
    """

    law: Law
    scale: float

    def __post_init__(self) -> None:
        if self.law not in ("gaussian", "laplace"):
            raise SettingsError(f"expected noise of law gaussian or laplace, found {self.law!r}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise SettingsError(f"expected a noise scale of at least 0, found {self.scale}")

    @property
    def std(self) -> float:
        """Standard deviation per entry."""
        return self.scale if self.law == "gaussian" else math.sqrt(2) * self.scale

    def draw(self, num_entries: int) -> Tensor:
        """One draw [num_entries], float64 on the CPU, before any rounding."""
        drawn = np.empty(num_entries)
        for first in range(0, num_entries, CHUNK):
            part = drawn[first : first + CHUNK]
            signs, uniform = _signs_and_halves(len(part))
            size = -ndtri(uniform) if self.law == "gaussian" else -np.log(2 * uniform)
            np.multiply(signs, self.scale * size, out=part)
        return torch.from_numpy(drawn)

    def added(self, tensor: Tensor) -> Tensor:
        """``tensor`` with noise on every entry, rounded to a grid; same shape, dtype and device.

        All entries are NaN where one of them isn't finite: what overflowed can't be sent.

        Raises:
            GuardError: the dtype has too few digits for entries that are so much larger than the noise.
        """
        if self.scale == 0:
            return tensor.detach().clone()
        noisy = tensor.detach().to("cpu", torch.float64) + self.draw(tensor.numel()).reshape(tensor.shape)
        if not bool(torch.isfinite(noisy).all()):
            return torch.full_like(tensor, math.nan)
        return on_grid(noisy, self.std, tensor.dtype).to(tensor.device)


def on_grid(noisy: Tensor, std: float, dtype: torch.dtype) -> Tensor:
    """Noisy entries rounded to multiples of one power of two, all of which the dtype holds exactly.

    Args:
        noisy: a sum with noise, float64, any shape.
        std: of the noise on its entries.
        dtype: that leaves.

    Returns:
        The same shape in ``dtype``.

    Raises:
        GuardError: the dtype has too few digits for entries that are so much larger than the noise.
    """
    step = _step(float(noisy.abs().max()) if noisy.numel() else 0.0, std, dtype)
    rounded = torch.round(noisy / step) * step
    held = rounded.to(dtype)
    if not torch.equal(held.to(torch.float64), rounded):
        raise GuardError(_too_large(std, dtype))
    return held


def _step(largest: float, std: float, dtype: torch.dtype) -> float:
    """The grid's step: fine beside the noise, and so coarse that multiples up to ``largest`` fit the dtype's digits."""
    numbers = torch.finfo(dtype)
    digits = 1 - round(math.log2(numbers.eps))
    finest = 2.0 ** (math.floor(math.log2(std)) - FINENESS)
    holdable = 2.0 ** (math.ceil(math.log2(largest)) - digits) if largest > 0 else 0.0
    step = max(finest, holdable, numbers.smallest_normal * numbers.eps)
    if not step <= COARSEST * std or not largest <= numbers.max:
        raise GuardError(_too_large(std, dtype))
    return step


def _too_large(std: float, dtype: torch.dtype) -> str:
    numbers, name = torch.finfo(dtype), str(dtype).removeprefix("torch.")
    most = min(numbers.max, COARSEST * std * 2 / numbers.eps)
    return (
        f"expected entries of at most {most:.2g} in {name} beside noise of std {std:.3g}, found larger ones, which "
        "have no digits left for the noise; clip the gradient, or keep it in float32"
    )


def _signs_and_halves(count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Random signs, and numbers uniform in (0, 1/2), 0 never among them."""
    words = _words(count)
    signs = np.where(words & np.uint64(1), 1.0, -1.0)
    magnitudes = words >> np.uint64(1)
    uniform = (magnitudes.astype(np.float64) + 0.5) * 2.0**-64
    (small,) = np.nonzero(magnitudes < EXACT)
    if len(small):
        uniform[small] = (magnitudes[small] + (_words(len(small)) + 0.5) * 2.0**-64) * 2.0**-64
    return signs, uniform


def _words(count: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
