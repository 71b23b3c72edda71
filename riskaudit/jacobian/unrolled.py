"""J of local training by derivatives through its steps: forward for J v, reverse for J^T u, one step at a time.

    forward:  dS_k+1 = (dstep/dS) dS_k + (dstep/dx_k) dx_k,   dS_0 = 0,   J v = -dtheta_K
    reverse:  (lambda_k, xbar_k) += (dstep/d(S, x_k))^T lambda_k+1,   lambda_K = (-u, 0),   J^T u = (xbar_0 ... )

A step's graph is made when the pass comes to it and thrown away after. The reverse pass needs the state before every
step; of many steps every C-th is remembered, and those between are trained anew (Griewank and Walther, ACM TOMS 26,
2000), so that memory is that of one step and of some 2 sqrt(K) states: within 3 times one step's for 50 steps of a
LeNet (benchmarks/RESULTS.md), more for many hundreds.

A step's derivatives are torch's own, whatever its layers are: they too have one weight, and one tangent of its shape,
for a whole mini-batch. The forward pass is one of torch.func's transforms; the training and its reverse passes are
plain autograd, where all columns share a step's graph, and no column needs the first state's part. J v costs about 6
trainings and J^T u about 4; of many columns each costs 1 to 1.5, where convolutions go as matrix products
(`jacobian.convolutions`). Where one column after the other is asked for at the same point, as conjugate gradient does,
and steps are few, a graph of the whole training is made once and every column goes through it: 1.5 to 1.8 times as fast
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import final

import torch
from torch import Tensor
from torch.func import jvp, vmap
from typing_extensions import override

from riskaudit.jacobian.aggregation import Aggregation
from riskaudit.jacobian.base import Jacobian
from riskaudit.jacobian.convolutions import MatrixConvolutions
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.release import Batch
from riskaudit.release.local_training import LocalTrainingRelease, State

# Up to so many states are all remembered: with them products stay within 3 times one step's memory.
FEW_STATES = 16
# Who keeps graphs for speed remembers all states where they hold no more numbers together.
STATE_ENTRIES = 2**24
# Columns at once: numbers in the tangents of a state; those that are pulled one after the other through one graph.
BLOCK_ENTRIES, BLOCK_COLUMNS = 2**24, 64
# Single columns, one after the other, from which on they go through one graph, if that has no more steps, so that it
# stays within 3 times one step's, and takes no more bytes.
FEW_SINGLES, WHOLE_GRAPH_STEPS, WHOLE_GRAPH_BYTES = 4, 16, 2**28
# Steps whose graphs are kept where that is asked for.
KEPT_GRAPHS = 2
# Graphs of the training and of its derivative.
GRAPHS = 2
# From so many on, looking at every call of the dispatcher for convolutions costs less than it saves.
MATRIX_COLUMNS = 16
PULLED_ENTRIES = 2**26
# A column of more numbers isn't worked out beside others by one call, whose kernels are slower then.
LARGE_COLUMN = 2**20


@final
class UnrolledJacobian(Jacobian):
    """J of U uploads of local training, each [P', n d]; see `Jacobian`.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        keeps_graph: whether graphs of the last steps are kept from the training for the pulls, which begin there.
    """

    def __init__(self, release: LocalTrainingRelease, batch: Batch, keeps_graph: bool = False) -> None:
        super().__init__(release, batch)
        self.release: LocalTrainingRelease = release
        self.keeps_graph = keeps_graph
        self._num_singles = 0

    @override
    def select(self, indices: list[int]) -> UnrolledJacobian:
        part = UnrolledJacobian(self.release, self.batch.select(indices), self.keeps_graph)
        if "_uploads" in self.__dict__:
            part._uploads = [self._uploads[index] for index in indices]
        return part

    @override
    def mean(self) -> Tensor:
        return torch.stack([upload.aggregation.mean for upload in self._uploads])

    @override
    def losses(self) -> Tensor:
        return self.release.losses(self.batch)

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        """Zeros: nothing is known of it."""
        return torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def _matmat(self, columns: Tensor) -> Tensor:
        if self._goes_through_whole(columns):
            return self._whole.matmat(columns)
        return torch.stack([upload.push(part) for upload, part in zip(self._uploads, columns, strict=True)])

    @torch.no_grad()
    def _rmatmat(self, columns: Tensor) -> Tensor:
        if self._goes_through_whole(columns):
            return self._whole.rmatmat(columns).detach()
        return torch.stack([upload.pull(part) for upload, part in zip(self._uploads, columns, strict=True)])

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._matmat(columns).mT

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._rmatmat(self._matmat(columns))

    def _goes_through_whole(self, columns: Tensor) -> bool:
        if columns.shape[-1] != 1:
            return False
        self._num_singles += 1
        return self._num_singles > FEW_SINGLES and self._has_small_graph

    @cached_property
    def _has_small_graph(self) -> bool:
        clients = [client for upload in self._uploads for client in upload.clients]
        if any(len(client.parts) > WHOLE_GRAPH_STEPS for client in clients):
            return False
        return GRAPHS * sum(client.graph_bytes() for client in clients) <= WHOLE_GRAPH_BYTES

    @cached_property
    def _whole(self) -> GenericJacobian:
        return GenericJacobian(self.release, self.batch, forward=False)

    @cached_property
    def _uploads(self) -> list[_Upload]:
        numbers = self.batch.numbers or (0,) * self.num_samples
        pairs = zip(self.batch.each_upload(), numbers, strict=True)
        return [_Upload(self.release, *pair, self.keeps_graph) for pair in pairs]


class _Upload:
    """One upload: the training of its clients, and what is made of their differences."""

    def __init__(self, release: LocalTrainingRelease, batch: Batch, number: int, keeps_graph: bool) -> None:
        size = len(batch) // release.spec.num_clients
        firsts = range(0, len(batch), size)
        self.clients = [_Client(release, batch.samples(range(first, first + size)), keeps_graph) for first in firsts]
        differences = torch.stack([client.difference for client in self.clients])
        self.aggregation = Aggregation(release, number, size, differences)

    def push(self, columns: Tensor) -> Tensor:
        """J on columns [n d, K]; returns [P', K]."""
        parts = columns.chunk(len(self.clients))
        if self.aggregation.is_identity:
            return self.clients[0].push(columns)
        pushed = torch.stack([client.push(part) for client, part in zip(self.clients, parts, strict=True)])
        return torch.stack([self.aggregation.apply(rows) for rows in pushed.unbind(-1)], dim=1)

    def pull(self, columns: Tensor) -> Tensor:
        """J^T on columns [P', K]; returns [n d, K]."""
        if self.aggregation.is_identity:
            return self.clients[0].pull(columns)
        given = torch.stack([self.aggregation.transpose(column) for column in columns.unbind(1)], dim=-1)
        return torch.cat([client.pull(part) for client, part in zip(self.clients, given, strict=True)])


class _Client:
    """One client's training, with the states that its reverse passes start from.

    Attributes:
        difference: theta_0 - theta_K, [P].
    """

    def __init__(self, release: LocalTrainingRelease, batch: Batch, keeps_graph: bool) -> None:
        self.release, self.batch = release, batch.with_inputs(batch.inputs.detach())
        self.parts = release.mini_batches(self.batch)
        self._keeps_graph = keeps_graph
        self._graphs: dict[int, _Graph] = {}
        self._states, self.difference = self._remembered()

    @property
    def _spacing(self) -> int:
        """Steps between two states that are remembered."""
        count, kinds = len(self.parts), len(self.release.initial_state())
        are_small = count * kinds * self.release.context.num_entries <= STATE_ENTRIES
        return 1 if count <= FEW_STATES or (self._keeps_graph and are_small) else isqrt(count)

    @torch.no_grad()
    def _remembered(self) -> tuple[dict[int, State], Tensor]:
        """States before every C-th step, and what the last leaves."""
        state, spacing = self.release.initial_state(), self._spacing
        states = {}
        for number, (_, part) in enumerate(self.parts):
            if number % spacing == 0:
                states[number] = state
            if self._keeps_graph and number >= len(self.parts) - KEPT_GRAPHS:
                self._graphs[number] = self._graph(state, number, part)
                state = _mapped(Tensor.detach, self._graphs[number].after)
            else:
                state = self.release.trained_step(state, number, part)
        return states, self.release.difference(state["weights"]).detach()

    def _blocks(self, columns: Tensor, work: Callable[[Tensor], Tensor], entries: int) -> Tensor:
        size = max(1, min(BLOCK_COLUMNS, entries // self.release.context.num_entries))
        has_images = any(value.ndim > 2 for value in self.release.parameters.values())
        pays = has_images and columns.shape[1] >= MATRIX_COLUMNS
        with MatrixConvolutions() if pays else nullcontext():  # type: ignore[no-untyped-call]
            return torch.cat([work(part) for part in torch.split(columns, size, dim=1)], dim=1)

    def graph_bytes(self) -> int:
        """Memory of the graph of all steps, about: what the first one saves, times their number."""
        saved = list[int]()

        def count(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            self._graph(self.release.initial_state(), 0, self.parts[0][1])
        return sum(saved) * len(self.parts)

    def push(self, columns: Tensor) -> Tensor:
        """The derivative of the difference on columns [n d, K]; returns [P, K]."""
        return self._blocks(columns, self._push, BLOCK_ENTRIES)

    def pull(self, columns: Tensor) -> Tensor:
        """Its transpose on columns [P, K]; returns [n d, K]."""
        return self._blocks(columns, self._pull, PULLED_ENTRIES)

    def _push(self, columns: Tensor) -> Tensor:
        tangents = columns.mT.reshape(-1, *self.batch.inputs.shape)
        state = self.release.initial_state()
        zero = {
            kind: {name: value.new_zeros(len(tangents), *value.shape) for name, value in values.items()}
            for kind, values in state.items()
        }
        moved: State = zero
        for number, (positions, part) in enumerate(self.parts):
            state, moved = self._pushed_step(state, moved, number, part, tangents[:, positions])
        flat = [-moved["weights"][name].flatten(1) for name in self.release.parameters]
        return torch.cat(flat, dim=1).mT

    def _pushed_step(
        self, state: State, moved: State, number: int, part: Batch, tangents: Tensor
    ) -> tuple[State, State]:
        def step(state: State, inputs: Tensor) -> State:
            return self.release.step(state, number, part.with_inputs(inputs))

        def push(moved: State, tangent: Tensor) -> tuple[State, State]:
            after: State
            pushed: State
            after, pushed = jvp(step, (state, part.inputs), (moved, tangent))  # type: ignore[misc]
            return after, pushed

        if len(tangents) == 1:  # without vmap layers keep their ordinary, faster kernels
            after, pushed = push(_mapped(lambda value: value[0], moved), tangents[0])
            return _detached(after), _mapped(lambda value: value.detach().unsqueeze(0), pushed)
        after, pushed = vmap(push, out_dims=(None, 0))(moved, tangents)  # type: ignore[arg-type]
        return _detached(after), _detached(pushed)

    def _pull(self, columns: Tensor) -> Tensor:
        count = columns.shape[1]
        pulled = self.batch.inputs.new_zeros(count, *self.batch.inputs.shape)
        adjoint = self._adjoint(columns)
        spacing = self._spacing
        for first in sorted(self._states, reverse=True):
            states = self._trained_from(first, min(first + spacing, len(self.parts)))
            while states:
                number = first + len(states) - 1
                positions, part = self.parts[number]
                adjoint, inputs = self._pulled_step(states.pop(), adjoint, number, part)
                # A sample may occur several times in a mini-batch.
                pulled.index_add_(1, torch.tensor(positions, device=pulled.device), inputs)
        return pulled.reshape(count, -1).mT

    def _adjoint(self, columns: Tensor) -> State:
        """lambda_K for J^T u, u the columns [P, K]."""
        weights = {
            name: entries.mT.neg().contiguous().reshape(-1, *self.release.parameters[name].shape)
            for name, entries in zip(
                self.release.parameters,
                torch.split(columns, [value.numel() for value in self.release.parameters.values()]),
                strict=True,
            )
        }
        others = {
            kind: {name: torch.zeros_like(weights[name]) for name in values}
            for kind, values in self.release.initial_state().items()
            if kind != "weights"
        }
        return {"weights": weights, **others}

    def _trained_from(self, first: int, end: int) -> list[State]:
        """The states before the steps from ``first`` to before ``end``."""
        states = [self._states[first]]
        for number in range(first, end - 1):
            states.append(self.release.trained_step(states[-1], number, self.parts[number][1]))
        return states

    def _graph(self, state: State, number: int, part: Batch) -> _Graph:
        leaves = _mapped(lambda value: value.detach().requires_grad_(), state)
        inputs = part.inputs.detach().requires_grad_()
        return _Graph(leaves, inputs, self.release.graphed_step(leaves, number, part.with_inputs(inputs)))

    def _pulled_step(self, state: State, adjoint: State, number: int, part: Batch) -> tuple[State, Tensor]:
        """lambda_k and xbar_k of all columns; nothing in the place of lambda_0, which nobody needs."""
        is_kept = number in self._graphs
        graph = self._graphs[number] if is_kept else self._graph(state, number, part)
        leaves, after = graph.state, graph.after
        pairs = [(value, adjoint[kind][name]) for kind, values in after.items() for name, value in values.items()]
        outputs, cotangents = zip(*((value, each) for value, each in pairs if value.requires_grad), strict=True)
        before = [] if number == 0 else [value for values in leaves.values() for value in values.values()]
        pulled = _pulled_columns(outputs, [*before, graph.inputs], cotangents, is_kept)
        given = iter(pulled)
        return {kind: {name: next(given) for name in values} for kind, values in leaves.items() if number}, pulled[-1]


@dataclass(frozen=True, eq=False)
class _Graph:
    """A step as a graph: the state before it and the inputs, which it starts from, and the state after it."""

    state: State
    inputs: Tensor
    after: State


def _pulled_columns(
    outputs: Sequence[Tensor], sources: Sequence[Tensor], cotangents: Sequence[Tensor], is_kept: bool
) -> list[Tensor]:
    """The transposed derivative on cotangents [K, *S] of each output, for each source [K, *S]."""
    count, together = len(cotangents[0]), sum(map(torch.Tensor.numel, outputs)) <= LARGE_COLUMN
    if count > 1 and together:
        # Not by `is_grads_batched`, which takes a convolution's second derivatives one column after the other.
        def pull(*cotangents: Tensor) -> list[Tensor]:
            pulled = torch.autograd.grad(outputs, sources, cotangents, retain_graph=True, allow_unused=True)
            pairs = zip(sources, pulled, strict=True)
            return [torch.zeros_like(source) if each is None else each for source, each in pairs]

        return list(vmap(pull)(*cotangents))
    columns = [
        torch.autograd.grad(
            outputs,
            sources,
            [each[column] for each in cotangents],
            retain_graph=is_kept or column + 1 < count,
            allow_unused=True,
        )
        for column in range(count)
    ]
    return [
        torch.stack([torch.zeros_like(source) if each is None else each for each in row])
        for source, row in zip(sources, zip(*columns, strict=True), strict=True)
    ]


def _mapped(function: Callable[[Tensor], Tensor], state: State) -> State:
    return {kind: {name: function(value) for name, value in values.items()} for kind, values in state.items()}


def _detached(state: State) -> State:
    return _mapped(Tensor.detach, state)
