"""J = dr/dx of any release by automatic differentiation (``torch.func``): no knowledge of the layers.

J v is forward-over-reverse (a Jacobian-vector product of the per-sample gradient, linearised once per
batch); where an operation of the model has no forward derivative, it is a double vector-Jacobian
product. J^T u is a vector-Jacobian product whose graph is built once per batch.

Memory grows with samples times released entries: the caller bounds the samples (``--batch-size``), and
columns are cut into blocks here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import cast, final

import torch
from torch import Tensor
from torch.func import jvp, linearize, vjp, vmap

from riskaudit.jacobian.base import Jacobian
from riskaudit.release import Batch, Release

# At most this many numbers in one block of J's columns (256 MB in float64), and this many columns.
BLOCK_ENTRIES = 2**25
BLOCK_COLUMNS = 256
# Tracing the linearisation costs about as much as this many products.
PLAIN_PUSHES = 4


@final
class GenericJacobian(Jacobian):
    """J of B samples, each [P, d].

    Args:
        release: with parameters of the dtype and device to work in.
        batch: inputs [B, *S] of the same dtype and device.
        forward: True or False to choose forward-over-reverse or reverse; None to try the former once.
    """

    def __init__(self, release: Release, batch: Batch, forward: bool | None = None) -> None:
        super().__init__(release, batch)
        self._num_pushes = 0
        self.forward = _has_forward_derivative(release, batch) if forward is None else forward

    def select(self, indices: list[int]) -> GenericJacobian:
        """The Jacobians of some samples only."""
        return GenericJacobian(self.release, self.batch.select(indices), self.forward)

    def mean(self) -> Tensor:
        """See `Jacobian.mean`."""
        return self.release.mean(self.batch)

    def losses(self) -> Tensor:
        """See `Jacobian.losses`."""
        return self.release.losses(self.batch)

    def smallest_eigenvalue_bound(self) -> Tensor:
        """Zeros: nothing is known of the layers."""
        return torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)

    def _mean(self, inputs: Tensor) -> Tensor:
        return self.release.transformed_mean(Batch(inputs, self.batch.targets))

    @cached_property
    def _pullback(self) -> Callable[[Tensor], tuple[Tensor]]:
        """u [B, P] to (J^T u [B, *S],), the graph of r kept."""
        pullback: Callable[[Tensor], tuple[Tensor]]
        _, pullback = vjp(self._mean, self.batch.inputs)  # type: ignore[misc]
        return pullback

    @cached_property
    def _linearised(self) -> Callable[[Tensor], Tensor]:
        """v [B, *S] to J v [B, P], whatever doesn't depend on v computed once."""
        probe = torch.ones_like(self.batch.inputs)
        expected = self._plain_push(probe)
        try:
            with warnings.catch_warnings():
                # Notes of the tracer to itself on the constants that it folds.
                warnings.simplefilter("ignore")
                _, pushforward = linearize(self._mean, self.batch.inputs)
            # A trace may change its own constants (group norm's does), which shows in the second product.
            pushforward(probe)
            found = pushforward(probe)
        except Exception:  # not every model can be traced; the plain product says what is wrong if anything is
            return self._plain_push
        tolerance = torch.finfo(self.dtype).eps ** 0.75
        faithful = bool((found - expected).norm() <= tolerance * expected.norm())
        return cast(Callable[[Tensor], Tensor], pushforward) if faithful else self._plain_push

    def _plain_push(self, tangent: Tensor) -> Tensor:
        pushed: Tensor
        _, pushed = jvp(self._mean, (self.batch.inputs,), (tangent,))  # type: ignore[misc]
        return pushed

    @cached_property
    def _reverse_pushforward(self) -> Callable[[Tensor], Tensor]:
        """J v as the transpose of the (linear) pullback."""
        start = torch.zeros(self.num_samples, self.shape[0], dtype=self.dtype, device=self.device)
        # Made before the vjp begins: a graph made inside a transform doesn't outlive it.
        pullback = self._pullback
        pushforward: Callable[[Tensor], tuple[Tensor]]
        _, pushforward = vjp(lambda cotangent: pullback(cotangent)[0], start)  # type: ignore[misc]
        return lambda tangent: pushforward(tangent)[0]

    def _matmat(self, columns: Tensor) -> Tensor:
        if columns.shape[-1] == 1:
            return self._push(columns[..., 0].reshape(self.batch.inputs.shape)).unsqueeze(-1)
        return torch.stack([self._sample_columns(index, columns[index]) for index in range(self.num_samples)])

    def _push(self, tangent: Tensor) -> Tensor:
        if not self.forward:
            return self._reverse_pushforward(tangent)
        self._num_pushes += 1
        return self._plain_push(tangent) if self._num_pushes <= PLAIN_PUSHES else self._linearised(tangent)

    def _sample_push(self, inputs: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        pushed: Tensor
        _, pushed = jvp(lambda value: self.release.sample_mean(value, target), (inputs,), (direction,))  # type: ignore[misc]
        return pushed

    def _sample_columns(self, index: int, columns: Tensor) -> Tensor:
        """J of one sample times columns [d, K], block by block; returns [P, K]."""
        inputs, target = self.batch.inputs[index], self.batch.targets[index]
        if self.forward:
            push = lambda direction: self._sample_push(inputs, target, direction)  # noqa: E731
        else:
            pushforward = self.select([index])._reverse_pushforward
            push = lambda direction: pushforward(direction.unsqueeze(0))[0]  # noqa: E731
        size = max(1, min(BLOCK_COLUMNS, BLOCK_ENTRIES // self.shape[0]))
        starts = range(0, columns.shape[1], size)
        blocks = [vmap(push)(columns[:, k : k + size].mT.reshape(-1, *inputs.shape)).mT for k in starts]
        return torch.cat(blocks, dim=1)

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._rmatmat(self._matmat(columns))

    def _rmatmat(self, columns: Tensor) -> Tensor:
        pulled = [self._pullback(columns[..., k])[0].flatten(1) for k in range(columns.shape[-1])]
        return torch.stack(pulled, dim=-1)


def _has_forward_derivative(release: Release, batch: Batch) -> bool:
    """Whether every operation of the model can be pushed forward, tried on the first sample."""
    inputs, target = batch.inputs[0], batch.targets[0]
    try:
        jvp(lambda value: release.sample_mean(value, target), (inputs,), (torch.ones_like(inputs),))
    except (NotImplementedError, RuntimeError):
        # A failure that isn't about forward derivatives shows again, in reverse mode, to the caller.
        return False
    return True
