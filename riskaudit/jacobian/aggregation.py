"""From the vectors of an upload's parts to what is sent: steps and means, with their derivative and its transpose.

Parts are an upload's clients, or its samples where steps come before the mean over them:

    r = s_server(mean_k s_client(mean_i s_sample(g_ki)))

Every step is differentiated at the vector that it is applied to.
"""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch
from torch import Tensor

from riskaudit.release.derivatives import Derivative, derivative_of
from riskaudit.release.joint import JointRelease, Stages
from riskaudit.release.steps import applied


@final
class Aggregation:
    """What is made of one upload's m parts.

    Args:
        release: of the upload; its means and steps count, its noise doesn't.
        number: of the upload, for steps that are drawn anew for each.
        size: samples of one client.
        vectors: of the parts, client by client, [m, P], without graph.
        inputs: of the samples, [m, *S], where these are the parts.
    """

    def __init__(
        self, release: JointRelease, number: int, size: int, vectors: Tensor, inputs: Tensor | None = None
    ) -> None:
        self.num_clients = release.spec.num_clients
        self.parts_per_client = len(vectors) // self.num_clients
        parts = [slice(first, first + self.parts_per_client) for first in range(0, len(vectors), self.parts_per_client)]
        self._clients = [
            _Client(release.stages(number + client * size), vectors[part], None if inputs is None else inputs[part])
            for client, part in enumerate(parts)
        ]
        stages = release.stages(number)
        self._last_steps = [*stages.server, *stages.last]
        self.is_identity = len(vectors) == 1 and not release.spec.all_steps

    @cached_property
    def mean(self) -> Tensor:
        """r before noise, [P']."""
        if self.is_identity:
            return self._clients[0].vectors[0]
        return applied(self._last_steps, self._aggregate)

    def apply(self, rows: Tensor) -> Tensor:
        """The derivative on tangents [m, P] of the parts; returns [P']."""
        pairs = zip(self._clients, torch.split(rows, self.parts_per_client), strict=True)
        pushed = torch.stack([client.apply(part) for client, part in pairs]).mean(0)
        return self._last.apply(pushed[None])[0]

    def transpose(self, vector: Tensor) -> Tensor:
        """Its transpose on [P']; returns [m, P]."""
        given = self._last.transpose(vector[None])[0] / self.num_clients
        return torch.cat([client.transpose(given) for client in self._clients])

    def apply_to_one(self, part: int, row: Tensor) -> Tensor:
        """`apply` where only one part has a tangent, [P]."""
        client, index = divmod(part, self.parts_per_client)
        pushed = self._clients[client].apply_to_one(index, row) / self.num_clients
        return self._last.apply(pushed[None])[0]

    def transpose_of_one(self, part: int, vector: Tensor) -> Tensor:
        """One row of `transpose`, [P]."""
        client, index = divmod(part, self.parts_per_client)
        given = self._last.transpose(vector[None])[0] / self.num_clients
        return self._clients[client].transpose_of_one(index, given)

    @cached_property
    def _aggregate(self) -> Tensor:
        return torch.stack([client.mean for client in self._clients]).mean(0)

    @cached_property
    def _last(self) -> Derivative:
        return derivative_of(self._aggregate[None], self._last_steps)


class _Client:
    """One client's parts [s, P], the steps on each, and those on their mean."""

    def __init__(self, stages: Stages, vectors: Tensor, inputs: Tensor | None) -> None:
        self.stages, self.vectors, self.count = stages, vectors, len(vectors)
        self.inputs = inputs
        self._each: dict[int, Derivative] = {}

    @property
    def mean(self) -> Tensor:
        """What leaves the client, [P]."""
        return applied(self.stages.client, self._inner_mean)

    def apply(self, rows: Tensor) -> Tensor:
        """[s, P] to [P]."""
        return self._outer.apply(self._inner.apply(rows).mean(0, keepdim=True))[0]

    def transpose(self, vector: Tensor) -> Tensor:
        """[P] to [s, P]."""
        return self._inner.transpose(self._outer.transpose(vector[None]).expand(self.count, -1) / self.count)

    def apply_to_one(self, index: int, row: Tensor) -> Tensor:
        """[P] to [P]."""
        return self._outer.apply(self._inner_of(index).apply(row[None]) / self.count)[0]

    def transpose_of_one(self, index: int, vector: Tensor) -> Tensor:
        """[P] to [P]."""
        return self._inner_of(index).transpose(self._outer.transpose(vector[None]) / self.count)[0]

    @cached_property
    def _inner_mean(self) -> Tensor:
        samples = [None] * self.count if self.inputs is None else self.inputs
        pairs = zip(self.vectors, samples, strict=True)
        return torch.stack([applied(self.stages.sample, vector, sample) for vector, sample in pairs]).mean(0)

    @cached_property
    def _inner(self) -> Derivative:
        return derivative_of(self.vectors, self.stages.sample, self.inputs)

    @cached_property
    def _outer(self) -> Derivative:
        return derivative_of(self._inner_mean[None], self.stages.client)

    def _inner_of(self, index: int) -> Derivative:
        if index not in self._each:
            own = slice(index, index + 1)
            inputs = None if self.inputs is None else self.inputs[own]
            self._each[index] = derivative_of(self.vectors[own], self.stages.sample, inputs)
        return self._each[index]
