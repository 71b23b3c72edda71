"""Normalisation as a layer of the audited model, so that its input stays in data units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riskaudit.errors import CheckpointError


class Normalized(nn.Module):
    """``model((x - mean) / std)``; x [B, C, H, W] or [B, F] in data units.

    Args:
        model: takes normalised inputs.
        mean: one value, or one per channel (dimension 1 of x), in data units.
        std: likewise, positive.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        reference = next(model.parameters(), torch.zeros(()))
        self.register_buffer("mean", reference.new_tensor(list(mean)), persistent=False)
        self.register_buffer("std", reference.new_tensor(list(std)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The wrapped model's output for a batch x [B, ...] in data units."""
        trailing = (1,) * (x.ndim - 2)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        normalized: Tensor = self.model((x - mean.reshape(-1, *trailing)) / std.reshape(-1, *trailing))
        return normalized


def check_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None
) -> tuple[list[float], list[float]] | None:
    """``(mean, std)`` as lists of one length, or None where neither is given.

    Raises:
        CheckpointError: only one given, lengths that don't fit, not finite, or std not positive.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        given, missing = ("`mean`", "`std`") if std is None else ("`std`", "`mean`")
        raise CheckpointError(f"{given} is given without {missing}; give both or neither")
    means, stds = [float(value) for value in mean], [float(value) for value in std]
    for option, values in (("`mean`", means), ("`std`", stds)):
        if not values or not all(math.isfinite(value) for value in values):
            raise CheckpointError(f"expected finite numbers for {option}, found {values}")
        if channels is not None and len(values) not in (1, channels):
            raise CheckpointError(
                f"expected one value or {channels} (one per channel) for {option}, found {len(values)}"
            )
    if min(stds) <= 0:
        raise CheckpointError(f"expected positive values for `std`, found {min(stds)}")
    length = max(len(means), len(stds))
    if len(means) not in (1, length) or len(stds) not in (1, length):
        raise CheckpointError(
            f"`mean` has {len(means)} values and `std` {len(stds)}; give as many of one as of the other"
        )
    return means * (length // len(means)), stds * (length // len(stds))
