"""The law of the noise on a released vector: independent entries of mean zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Law = Literal["gaussian", "laplace"]


@dataclass(frozen=True)
class Noise:
    """Independent noise; ``scale`` is the standard deviation (gaussian) or b (laplace) per entry."""

    law: Law
    scale: float

    @property
    def std(self) -> float:
        """Standard deviation per released entry."""
        return self.scale if self.law == "gaussian" else math.sqrt(2) * self.scale

    @property
    def fisher_std(self) -> float:
        """Std of the normal noise with the same Fisher information about the mean, per entry.

        The information of Laplace(b) noise is 1 / b^2: an attacker who knows the law does better
        than its standard deviation sqrt(2) b suggests. Everything that the posterior says of a
        release uses this std.
        """
        return self.scale

    def sample(self, num_entries: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """One draw [P] on the generator's device, made in float64 so that every dtype gets the same noise."""
        size, device = (num_entries,), generator.device
        if self.law == "gaussian":
            unit = torch.randn(size, generator=generator, dtype=torch.float64, device=device)
        else:
            # A Laplace variable is the difference of two exponential ones.
            uniform = torch.rand((2, num_entries), generator=generator, dtype=torch.float64, device=device)
            unit = torch.log1p(-uniform[1]) - torch.log1p(-uniform[0])
        return (self.scale * unit).to(dtype)

    def log_density(self, noise: Tensor, noisy: Tensor) -> Tensor:
        """Log density of a draw, summed over the entries that carry noise; noise [B, P], noisy [P], result [B]."""
        if self.law == "gaussian":
            entries = -0.5 * (noise / self.scale).square() - math.log(self.scale * math.sqrt(2 * math.pi))
        else:
            entries = -(noise / self.scale).abs() - math.log(2 * self.scale)
        return (entries * noisy).sum(-1)
