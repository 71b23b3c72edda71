"""The Jacobian of a release at B samples, as an operator, with what is read off it besides products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.response import StepResponse, pairing_gap, shrinking
from riskaudit.linalg import GramOperator, LinearOperator
from riskaudit.release import Batch, Release

JacobianKind: TypeAlias = Literal["structured", "generic", "sample_by_sample", "unrolled"]
# Random numbers of mean 0 and variance 1 in the shape, dtype and device of a tensor.
Draw: TypeAlias = Callable[[Tensor], Tensor]
# At most this many released entries are held at once, over samples (512 MB in float64).
CHUNK_ENTRIES = 2**26
# A loss counts as this at least, so that what it does to rounding is a number.
LEAST_LOSS = 1e-30


class Jacobian(LinearOperator):
    """J of the uploads of a batch, each [P', n d]: P' released entries, n samples of d coordinates.

    ``num_samples``, and B in every shape, counts uploads: each of a per-sample release holds one sample.

    Args:
        release: with parameters of the dtype and device to work in.
        batch: B uploads, inputs [B n, *S] of the same dtype and device.

    Attributes:
        separate: whether samples had to be worked out one by one, since a batch of them is another function.
    """

    separate: ClassVar[bool] = False

    def __init__(self, release: Release, batch: Batch) -> None:
        shape = (release.num_entries, batch.upload_size * batch.inputs[0].numel())
        super().__init__(batch.num_uploads, shape, release.dtype, release.device)
        self.release = release
        self.batch = batch

    @abstractmethod
    def select(self, indices: list[int]) -> Jacobian:
        """The Jacobians of some uploads only, in the order given; one may occur several times."""

    @abstractmethod
    def mean(self) -> Tensor:
        """r(x), [B, P']."""

    @abstractmethod
    def losses(self) -> Tensor:
        """The loss of every sample, [B n]."""

    @abstractmethod
    def smallest_eigenvalue_bound(self) -> Tensor:
        """A number that every eigenvalue of J^T J is sure to reach, [B], float64; 0 where none is known."""

    def step(self, direction: Tensor, draw: Draw | None = None, predicted: Tensor | None = None) -> StepResponse:
        """What a step of the inputs does to r, against what J says of it.

        Args:
            direction: v, [B, n d], in data units.
            draw: random numbers of mean 0 and variance 1 in the shape of a tensor, to hold J against J^T.
            predicted: |J v|, [B], where it is known already and nothing else is asked for.
        """
        release = self.release
        plain = release.before_steps()
        inputs = self.batch.inputs + direction.reshape(self.batch.inputs.shape)
        before, after = (plain.mean(each).detach() for each in (self.batch, self.batch.with_inputs(inputs)))
        norms = before.norm(dim=1).double()
        change = shrinking(norms, after.norm(dim=1).double())[:, None].to(after) * after - before
        released = release.released_change(before, change, self.batch)
        norms = norms if plain is release else self.norms
        if predicted is not None:
            return StepResponse(norms, predicted, released, [])
        pushed, gap = self.matvec(direction).detach(), None
        if draw is not None:
            cotangent = draw(pushed[:1]).expand_as(pushed)
            gap = pairing_gap(cotangent * pushed, self.rmatvec(cotangent).detach() * direction)
        return StepResponse(norms, pushed.norm(dim=1).double(), released, [], gap)

    @property
    @override
    def rounding(self) -> list[float]:
        return self._rounding

    @final
    @cached_property
    def _rounding(self) -> list[float]:
        if self.dtype == torch.float64:
            return [torch.finfo(self.dtype).eps] * self.num_samples
        rounding: list[float] = loss_rounding(self.losses().detach()).reshape(self.num_samples, -1).amax(1).tolist()
        return rounding

    @property
    def passes(self) -> int:
        """Passes over one sample that a product of one of the maps takes, or what would take as long."""
        training = self.release.spec.training
        return self.batch.upload_size * (1 if training is None else training.epochs)

    @final
    def hessian(self) -> GramOperator:
        """H = J^T J."""
        return GramOperator(self)

    @final
    @cached_property
    def norms(self) -> Tensor:
        """||r(x)||, [B], float64."""
        return torch.cat([part.mean().norm(dim=-1).double() for part, _ in self._chunks()])

    @final
    def pull_mean(self) -> Tensor:
        """J^T r / ||r||, [B, n d]; 0 where r = 0."""
        pulled = []
        for part, _ in self._chunks():
            mean = part.mean()
            pulled.append(part.rmatvec(mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-30)))
        return torch.cat(pulled)

    @final
    def pull_each(self, draw: Callable[[int], Tensor]) -> Tensor:
        """J^T u_i with u_i = draw(i) [P'] for the i-th upload, made as late as possible; returns [B, n d]."""
        pulled = [part.rmatvec(torch.stack([draw(index) for index in positions])) for part, positions in self._chunks()]
        return torch.cat(pulled)

    @final
    def _chunks(self) -> Iterator[tuple[Jacobian, list[int]]]:
        """The uploads in parts whose released vectors fit in memory, with their positions."""
        size = max(1, CHUNK_ENTRIES // self.shape[0])
        if size >= self.num_samples:
            yield self, list(range(self.num_samples))
            return
        for first in range(0, self.num_samples, size):
            positions = list(range(first, min(first + size, self.num_samples)))
            yield self.select(positions), positions


def loss_rounding(losses: Tensor) -> Tensor:
    """Unit roundoff of products with J in single precision at samples of these losses [B], [B], float64.

    A derivative such as p - y has the rounding of a number near 1, and about the size of the loss. An estimate: on
    60 digits at a trained network 4 sqrt(n) times this is 1.6 to 600 times what products with H are off by.
    """
    return torch.finfo(losses.dtype).eps * (1 + 1 / losses.double().abs().clamp_min(LEAST_LOSS))


class JacobianFactory(ABC):
    """Makes the Jacobian of one release at any batch: all that an attack needs of it.

    Attributes:
        release: what is differentiated; its model, loss, steps and noise law are public.
    """

    release: Release

    @abstractmethod
    def __call__(self, batch: Batch) -> Jacobian:
        """J at a batch."""

    @abstractmethod
    def of(self, release: Release) -> JacobianFactory:
        """The same for another release of this model, of the same coupling."""
