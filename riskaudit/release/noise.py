"""The law of the noise on a released vector: independent entries of mean zero. Loads without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from riskaudit.release.arguments import Argument, positive_number, usage_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Law = Literal["gaussian", "laplace"]
SCALES: Mapping[str, Argument] = {"gaussian": positive_number("STD"), "laplace": positive_number("B")}
"""The number that follows each law's name."""
_SUMMARIES = {
    "gaussian": "add normal noise of standard deviation STD to every released entry",
    "laplace": "add Laplace noise of scale B (standard deviation sqrt(2) B) to every released entry",
}


@dataclass(frozen=True)
class Noise:
    """Independent noise; ``scale`` is the standard deviation (gaussian) or b (laplace) per entry.

    The density of Laplace noise is exp(-|n| / b) / (2 b).
    """

    law: Law
    scale: float

    def __str__(self) -> str:
        return f"{self.law}:{self.scale!r}"

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

    def size(self, noise: Tensor) -> Tensor:
        """Size of draws [..., P]: ||n||_2^2 / sigma^2 of normal and 2 ||n||_1 / b of Laplace noise, [...].

        It is chi-square distributed with `degrees` (P) degrees of freedom.
        """
        import torch

        norm: Tensor = torch.linalg.vector_norm(noise, ord=2 if self.law == "gaussian" else 1, dim=-1) / self.scale
        return norm.square() if self.law == "gaussian" else 2 * norm

    def degrees(self, num_entries: float) -> float:
        """Degrees of freedom of the size of so many entries."""
        return num_entries if self.law == "gaussian" else 2 * num_entries

    def sample(self, num_entries: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """One draw [P] on the generator's device, made in float64 so that every dtype gets the same noise."""
        import torch

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


def noise_usages() -> dict[str, str]:
    """How every law is written in ``release``, and what it does."""
    return {usage_of(law, (scale,)): _SUMMARIES[law] for law, scale in SCALES.items()}
