"""Images as the outputs of untrained convolutional networks: the weights are searched for, not the pixels.

Such a network gives natural images sooner than noise (Ulyanov, Vedaldi and Lempitsky, "Deep image prior", CVPR 2018),
which keeps a search away from inputs that only match the gradient (Liu, Wang and Lei, "Data reconstruction attacks and
defenses", section 4.2). The network is a small U-Net of residual blocks with group norm; every row has one of its own,
for all images of its upload, whose inputs are the row's start. All begin with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks.optimise.descent import DECAY, MILESTONES
from riskaudit.attacks.optimise.minimisers import BestPoints, Function, Minimiser, Minimum, Stagnation

# The sides of the coarsest level are no shorter, and there are no more levels below the finest.
SHORTEST, LEVELS = 4, 3
GROUPS = 4
# Without a range, outputs stay within so many units of the start's mean.
REACH = 4.0


class ResidualBlock(nn.Module):
    """x + two convolutions with group norm before each, [N, channels, H, W]."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, channels, 1)
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """The block's outputs."""
        x = self.enter(x)
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        total: Tensor = x + inner
        return total


class UNet(nn.Module):
    """Noise [N, C, H, W] to numbers between 0 and 1 of the same shape.

    Args:
        channels: C.
        sides: H and W.
        width: channels of every level.
    """

    def __init__(self, channels: int, sides: tuple[int, int], width: int) -> None:
        super().__init__()
        levels = min(LEVELS, max(0, int(math.log2(max(1, min(sides) / SHORTEST)))))
        self.down = nn.ModuleList(ResidualBlock(channels if not level else width, width) for level in range(levels + 1))
        self.up = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(levels))
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        seen: list[Tensor] = []
        for block in self.down:
            x = block(x if not seen else F.avg_pool2d(x, 2, ceil_mode=True))
            seen.append(x)
        for block, beside in zip(self.up, reversed(seen[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, beside.shape[-2:], mode="nearest"), beside], dim=1))
        images: Tensor = self.last(x).sigmoid()
        return images


@final
@dataclass(frozen=True)
class NetworkDescent(Minimiser):
    """Adam on the weights of one network per row; the step size falls by 0.1 at 3/8, 5/8 and 7/8 of the steps.

    Attributes:
        input_shape: *S, of images.
        seed: of the networks' first weights.
        steps: at most.
        rate: step size.
        width: channels of the networks.
        box: least and greatest value of a coordinate; None where that isn't known.
        tolerance: see `Descent`.
        patience: see `Descent`.
    """

    input_shape: tuple[int, ...]
    seed: int
    steps: int
    rate: float = 1e-3
    width: int = 32
    box: tuple[float, float] | None = None
    tolerance: float = 1e-5
    patience: int = 200

    @override
    def minimise(self, function: Function, start: Tensor, unit: Tensor | None = None) -> Minimum:
        units = start.new_ones(len(start)) if unit is None else unit.to(start)
        rows = [_Row(self, *pair) for pair in zip(start, units, strict=True)]
        record, stagnation = BestPoints(start), Stagnation(len(start), self.tolerance, self.patience, start.device)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                made = [row.points() for row in rows]
            points = torch.stack(made).detach()
            value, gradient = function.evaluate(points, step / max(self.steps, 1))
            record.update(points, value, step)
            finite = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
            record.finish(record.active & ~finite, converged=False)
            stalled = stagnation.update(value) if step > MILESTONES[-1] * self.steps else torch.zeros_like(finite)
            record.finish(function.released_together(stalled | (value == 0)), converged=True)
            if step == self.steps or not bool(record.active.any()):
                break
            remaining = record.narrow()
            if remaining is not None:
                function = function.select(remaining)
                stagnation.select(remaining)
                rows, made, gradient = [rows[k] for k in remaining], [made[k] for k in remaining], gradient[remaining]
            passed = sum(step >= round(share * self.steps) for share in MILESTONES)
            for row, point, slope, is_active in zip(rows, made, gradient, record.active.tolist(), strict=True):
                if is_active:
                    row.step(point, slope, self.rate * DECAY**passed)
        return record.outcome()


class _Row:
    """The network of one row, its input, and where its outputs lie."""

    def __init__(self, how: NetworkDescent, start: Tensor, unit: Tensor) -> None:
        channels = how.input_shape[0] if len(how.input_shape) == 3 else 1
        sides = how.input_shape[-2], how.input_shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(how.seed)
            self.network = UNet(channels, sides, how.width).to(start)
        centre = start.mean()
        self.noise = ((start - centre) / unit).reshape(-1, channels, *sides)
        reach = REACH * unit
        self.low, self.high = (float(centre - reach), float(centre + reach)) if how.box is None else how.box
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=how.rate)

    def points(self) -> Tensor:
        """The images that the network makes, [n d]."""
        images: Tensor = self.low + (self.high - self.low) * self.network(self.noise)
        return images.reshape(-1)

    def step(self, points: Tensor, gradient: Tensor, rate: float) -> None:
        """One step of Adam, given the objective's gradient at the images, [n d]."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        points.backward(gradient)  # type: ignore[no-untyped-call]
        self.optimizer.step()
