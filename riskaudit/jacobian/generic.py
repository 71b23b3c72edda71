"""J = dr/dx of any release by automatic differentiation (``torch.func``): no knowledge of the layers.

J v is forward-over-reverse (a Jacobian-vector product of the per-sample gradient, linearised once per
batch); where an operation of the model has no forward derivative, it is a double vector-Jacobian
product. J^T u is a vector-Jacobian product whose graph is built once per batch.

Memory grows with samples times released entries: the caller bounds the samples (``batch_size``), and
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
from typing_extensions import override

from riskaudit.jacobian.base import Jacobian
from riskaudit.release import Batch, Release

# At most this many numbers in one block of J's columns (256 MB in float64), and this many columns.
BLOCK_ENTRIES = 2**25
BLOCK_COLUMNS = 256
# Tracing the linearisation costs about as much as this many products.
PLAIN_PUSHES = 4


@final
class GenericJacobian(Jacobian):
    """J of B uploads, each [P', n d]; see `Jacobian`.

    Args:
        release: of any coupling.
        batch: of uploads of one size.
        forward: True or False to choose forward-over-reverse or reverse; None to try the former once.
    """

    def __init__(self, release: Release, batch: Batch, forward: bool | None = None) -> None:
        super().__init__(release, batch)
        self._num_pushes = 0
        self.forward = _has_forward_derivative(release, batch) if forward is None else forward

    @override
    def select(self, indices: list[int]) -> GenericJacobian:
        return GenericJacobian(self.release, self.batch.select(indices), self.forward)

    @override
    def mean(self) -> Tensor:
        return self.release.mean(self.batch)

    @override
    def losses(self) -> Tensor:
        return self.release.losses(self.batch)

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """Zeros: nothing is known of the layers."""
        return torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)

    def _mean(self, inputs: Tensor) -> Tensor:
        return self.release.transformed_mean(self.batch.with_inputs(inputs))

    @cached_property
    def _pullback(self) -> Callable[[Tensor], tuple[Tensor]]:
        """u [B, P'] to (J^T u [B n, *S],), the graph of r kept."""
        pullback: Callable[[Tensor], tuple[Tensor]]
        _, pullback = vjp(self._mean, self.batch.inputs)  # type: ignore[misc]
        return pullback

    @cached_property
    def _linearised(self) -> Callable[[Tensor], Tensor]:
        """v [B n, *S] to J v [B, P'], whatever doesn't depend on v computed once."""
        probe = torch.ones_like(self.batch.inputs)
        expected = self._plain_push(probe)
        try:
            with warnings.catch_warnings():
                # Notes of the tracer to itself on the constants that it folds.
                warnings.simplefilter("ignore")
                _, pushforward = linearize(self._mean, self.batch.inputs)
            # A trace may change its own constants (group norm's does), which shows in the second product.
            pushforward(probe)
            pushed = pushforward(probe)
        except Exception:  # not every model can be traced; the plain product says what is wrong if anything is
            return self._plain_push
        tolerance = torch.finfo(self.dtype).eps ** 0.75
        faithful = bool((pushed - expected).norm() <= tolerance * expected.norm())
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
        return torch.stack([self._upload_columns(index, columns[index]) for index in range(self.num_samples)])

    def _push(self, tangent: Tensor) -> Tensor:
        if not self.forward:
            return self._reverse_pushforward(tangent)
        self._num_pushes += 1
        return self._plain_push(tangent) if self._num_pushes <= PLAIN_PUSHES else self._linearised(tangent)

    def _upload_columns(self, index: int, columns: Tensor) -> Tensor:
        """J of one upload times columns [n d, K], block by block; returns [P', K]."""
        upload = self.select([index])
        push = upload._plain_push if self.forward else upload._reverse_pushforward
        size = max(1, min(BLOCK_COLUMNS, BLOCK_ENTRIES // self.shape[0]))
        starts = range(0, columns.shape[1], size)
        shape = upload.batch.inputs.shape
        blocks = [vmap(push)(columns[:, k : k + size].mT.reshape(-1, *shape))[:, 0].mT for k in starts]
        return torch.cat(blocks, dim=1)

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._rmatmat(self._matmat(columns))

    def _rmatmat(self, columns: Tensor) -> Tensor:
        pulled = [self._pullback(columns[..., k])[0].reshape(self.num_samples, -1) for k in range(columns.shape[-1])]
        return torch.stack(pulled, dim=-1)


def _has_forward_derivative(release: Release, batch: Batch) -> bool:
    """Whether every operation of the model can be pushed forward, tried on the first upload."""
    upload = batch.select([0])
    try:
        jvp(
            lambda inputs: release.transformed_mean(upload.with_inputs(inputs)),
            (upload.inputs,),
            (torch.ones_like(upload.inputs),),
        )
    except (NotImplementedError, RuntimeError):
        # A failure that isn't about forward derivatives shows again, in reverse mode, to the caller.
        return False
    return True
