"""What of an objective is drawn anew at every step: points around the guess, and noise on the gradient.

Points of a ball: Balunovic et al., ICLR 2022, Algorithm 1. Noise on the gradient (Langevin): ibid., appendix A.7.
Every row has a generator of its own, so that it goes the same way in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Sampling:
    """Draws for R rows. They move on with every draw.

    Attributes:
        generators: of the rows, on the CPU.
        num_points: k, of the ball.
        radius: of the ball as a root mean square per coordinate, data units; 0 for the guess alone.
        noise: standard deviation of the normal noise on every entry of the gradient; 0 for none.
    """

    generators: tuple[torch.Generator, ...]
    num_points: int = 1
    radius: float = 0.0
    noise: float = 0.0

    @classmethod
    def of(
        cls, count: int, generator: torch.Generator, *, num_points: int = 1, radius: float = 0.0, noise: float = 0.0
    ) -> Sampling:
        """For ``count`` rows, with seeds from ``generator``."""
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        return cls(tuple(torch.Generator().manual_seed(seed) for seed in seeds), num_points, radius, noise)

    def select(self, rows: list[int]) -> Sampling:
        """The draws of some rows."""
        return replace(self, generators=tuple(self.generators[row] for row in rows))

    def around(self, points: Tensor) -> list[Tensor]:
        """k points [R, n], each uniformly distributed in the balls around the rows of [R, n]; without radius these."""
        if self.radius == 0:
            return [points]
        dimension = points.shape[1]
        direction = self._normal(self.num_points, dimension)
        reach = torch.stack(
            [torch.rand(self.num_points, 1, generator=each, dtype=torch.float64) for each in self.generators]
        ) ** (1 / dimension)
        offsets = self.radius * dimension**0.5 * reach * direction / direction.norm(dim=-1, keepdim=True)
        return [points + offset for offset in offsets.to(points).unbind(1)]

    def disturbed(self, gradient: Tensor) -> Tensor:
        """The gradient [R, n] with its noise."""
        if self.noise == 0:
            return gradient
        return gradient + self.noise * self._normal(1, gradient.shape[1])[:, 0].to(gradient)

    def _normal(self, count: int, dimension: int) -> Tensor:
        """[R, count, dimension], float64."""
        shape = (count, dimension)
        return torch.stack([torch.randn(shape, generator=each, dtype=torch.float64) for each in self.generators])
