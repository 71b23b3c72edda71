"""The prior of an upload: its samples are independent of each other beforehand, so that C is block diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from riskaudit.priors.base import Apply, BoundPrior


def in_uploads(prior: BoundPrior, size: int) -> BoundPrior:
    """The prior at U uploads of n = ``size`` samples, [U, n d], from that at their samples, [U n, d]."""
    if size == 1:
        return prior
    dimension = prior.mean.shape[1]

    def together(apply: Apply) -> Apply:
        return lambda vector: apply(vector.reshape(-1, dimension)).reshape(vector.shape)

    def select(indices: list[int]) -> BoundPrior:
        return in_uploads(prior.select([index * size + offset for index in indices for offset in range(size)]), size)

    def leading(index: int, count: int) -> tuple[list[float], Tensor]:
        """Of all blocks of one upload; what is left is at most the first value that no vector stands for."""
        assert prior.leading is not None
        values, vectors, rest = list[float](), list[Tensor](), list[float]()
        for offset in range(size):
            (*own, last), rows = prior.leading(index * size + offset, count)
            padded = rows.new_zeros(len(rows), size * dimension)
            padded[:, offset * dimension : (offset + 1) * dimension] = rows
            values, vectors, rest = values + own, [*vectors, *padded], [*rest, last]
        order = sorted(range(len(values)), key=lambda position: -values[position])
        chosen, others = order[:count], [values[position] for position in order[count:]]
        none = prior.mean.new_empty(0, size * dimension)
        rows = torch.stack([vectors[position] for position in chosen]) if chosen else none
        return [*(values[position] for position in chosen), max([*others, *rest])], rows

    variance = prior.variance.reshape(-1, size)
    return BoundPrior(
        mean=prior.mean.reshape(-1, size * dimension),
        root=together(prior.root),
        inverse_root=together(prior.inverse_root),
        variance=variance.mean(1),
        largest=prior.largest.reshape(-1, size).amax(1),
        select=select,
        isotropic=prior.isotropic and bool((variance == variance[:, :1]).all()),
        leading=None if prior.leading is None else leading,
    )
