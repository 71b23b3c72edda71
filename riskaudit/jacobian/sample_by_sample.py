"""J = dr/dx by plain `torch.autograd`, upload by upload: for code that no torch.func transform can run.

Recurrent layers, ``autograd.Function`` without ``setup_context``, checkpointing, Python branches on values, ``.item()``
and boolean masks all have second derivatives in plain autograd. J^T u is a backward pass through the graph of the
gradient; u to J^T u is linear, so J v is its own derivative (the double-backward trick: Townsend, 2017).
"""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.base import Jacobian
from riskaudit.release import Batch, Release
from riskaudit.release.model import twice_differentiable


@final
class SampleBySampleJacobian(Jacobian):
    """J of B uploads, each [P', n d]; see `Jacobian`."""

    def __init__(self, release: Release, batch: Batch) -> None:
        super().__init__(release, batch)
        self._graphs: dict[int, _Graph] = {}

    @override
    def select(self, indices: list[int]) -> SampleBySampleJacobian:
        return SampleBySampleJacobian(self.release, self.batch.select(indices))

    def refuse_gaps(self) -> None:
        """Look for a backward that isn't differentiable: what leads through it would be left out without a word.

        Raises:
            RuntimeError: a function of the model is marked ``once_differentiable``.
        """
        nodes, seen = [self._graph(index).released.grad_fn for index in range(self.num_samples)], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            if node.name() == "torch::autograd::Error":
                raise RuntimeError("a function is marked once_differentiable")
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]

    @override
    def mean(self) -> Tensor:
        return self.release.plain_mean(self.batch.with_inputs(self.batch.inputs.detach()))

    @override
    def losses(self) -> Tensor:
        plain_loss = self.release.function.plain_loss
        return torch.stack([plain_loss(inputs, target) for inputs, target in self.batch.pairs()])

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """Zeros: nothing is known of the layers."""
        return torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)

    def _matmat(self, columns: Tensor) -> Tensor:
        return torch.stack([self._graph(index).push(columns[index]) for index in range(self.num_samples)])

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return torch.stack([self._graph(index).pull(columns[index]) for index in range(self.num_samples)])

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._rmatmat(self._matmat(columns))

    def _graph(self, index: int) -> _Graph:
        if index not in self._graphs:
            self._graphs[index] = _Graph(self.release, self.batch.select([index]))
        return self._graphs[index]


class _Graph:
    """The graph of one upload's r, kept for products."""

    def __init__(self, release: Release, upload: Batch) -> None:
        self.inputs = upload.inputs.detach().clone().requires_grad_()
        # Taking the samples out of their batch belongs to the graph too.
        with torch.enable_grad():
            (self.released,) = release.plain_mean(upload.with_inputs(self.inputs))

    @cached_property
    def _pulled(self) -> tuple[Tensor, Tensor]:
        """A cotangent of zeros [P'] and its J^T u [n, *S], with the graph between them."""
        cotangent = torch.zeros_like(self.released, requires_grad=True)
        return cotangent, self._pull(cotangent, create_graph=True)

    def _pull(self, cotangent: Tensor, create_graph: bool = False) -> Tensor:
        if not self.released.requires_grad:
            return torch.zeros_like(self.inputs)
        with torch.enable_grad(), twice_differentiable():
            (pulled,) = torch.autograd.grad(
                self.released, self.inputs, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        return torch.zeros_like(self.inputs) if pulled is None else pulled

    def pull(self, columns: Tensor) -> Tensor:
        """J^T on columns [P', K]; returns [n d, K]."""
        return torch.stack([self._pull(column).reshape(-1) for column in columns.detach().unbind(1)], dim=1)

    def push(self, columns: Tensor) -> Tensor:
        """J on columns [n d, K]; returns [P', K]."""
        return torch.stack([self._push(column) for column in columns.detach().unbind(1)], dim=1)

    def _push(self, tangent: Tensor) -> Tensor:
        cotangent, pulled = self._pulled
        if not pulled.requires_grad:
            return torch.zeros_like(cotangent).detach()
        with twice_differentiable():
            (pushed,) = torch.autograd.grad(
                pulled, cotangent, tangent.reshape(pulled.shape), retain_graph=True, allow_unused=True
            )
        return torch.zeros_like(cotangent).detach() if pushed is None else pushed
