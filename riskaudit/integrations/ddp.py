"""The guard before the gradients of data-parallel processes are averaged; docs/pytorch.md has a training with it.

A communication hook of DistributedDataParallel comes too late: it sees one bucket while others haven't been computed,
or have left. So every rank keeps its gradient g_k to itself until its own guard has decided, contributes with weight
w_k = 1 or, when withheld, 0 and zeros, and all get

    sum_k w_k g_k / sum_k w_k.

The weights are summed first and by themselves: where fewer ranks contribute than ``min_ranks``, no gradient leaves
any of them, and nobody steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from riskaudit.errors import SettingsError
from riskaudit.guard import Decision, Guard
from riskaudit.guard.batches import held_batch, refuse_changed
from riskaudit.integrations.gradients import add_noise, clear, gradients, trainable, write
from riskaudit.release import Batch

__all__ = ["AverageGuard", "Round", "add_noise"]


@dataclass(eq=False)
class Round:
    """One round, filled in when its ``with`` block ends.

    Attributes:
        decision: about this rank's own gradient; not about the average.
        num_contributing: ranks whose gradients are in the average.
        averaged: whether there is an average; the same on every rank.
    """

    decision: Decision | None = None
    num_contributing: int = 0
    averaged: bool = False


class AverageGuard:
    """Takes the place of DistributedDataParallel's own averaging.

    Every rank makes one, at the same time, after `torch.distributed.init_process_group`.

    Args:
        guard: of this rank, for the plain model.
        model: the same, or DistributedDataParallel around it.
        min_ranks: fewest ranks whose average may leave them: a lone contributor's update would be seen as it is.
        group: of processes; all where not given.

    Raises:
        SettingsError: a model that isn't the guard's, buffers that would be sent past the guard, fewer ranks than
            ``min_ranks``, or ranks that don't agree about sizes.
    """

    def __init__(
        self, guard: Guard, model: nn.Module, *, min_ranks: int = 2, group: dist.ProcessGroup | None = None
    ) -> None:
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        problem = None
        if plain is not guard.model:
            problem = "expected the guard's own model, or DistributedDataParallel around it"
        elif (
            isinstance(model, DistributedDataParallel)
            and model.broadcast_buffers
            and any(True for _ in plain.buffers())
        ):
            # Sent in the forward pass, where a rank that failed before would also leave the others waiting.
            problem = "buffers would be sent past the guard; make DistributedDataParallel with broadcast_buffers=False"
        elif not 1 <= min_ranks <= dist.get_world_size(group):
            problem = f"expected min_ranks between 1 and the {dist.get_world_size(group)} ranks, found {min_ranks}"
        self._guard, self._model, self._min_ranks, self._group = guard, model, min_ranks, group
        parameters = trainable(plain)
        # Made now, so that a round can't fail for want of memory: the flat gradient, and the weight behind it.
        count = sum(parameter.numel() for parameter in parameters)
        dtype = functools.reduce(torch.promote_types, (parameter.dtype for parameter in parameters), torch.float32)
        device = parameters[0].device if parameters else torch.device("cpu")
        self._flat = torch.zeros(count + 1, dtype=dtype, device=device)
        self._count = torch.zeros(1, dtype=dtype, device=device)
        self._agree(problem, [count, min_ranks])

    @contextmanager
    def round(self, batch: Batch | Sequence[Any], *, ids: Sequence[object] | None = None) -> Iterator[Round]:
        """A block that makes this rank's gradient; at its end, gradients hold the average of all ranks.

        Gradients are cleared first. Where there is no average they are cleared again, so that the optimizer's step
        changes nothing, on no rank. An exception inside withholds this rank's gradient and doesn't go on to the
        caller: this rank has to be there for the others. Interrupts do go on, and the others find the connection
        closed.

        Args:
            batch: inputs [B, ...] and targets [B, ...] of this rank.
            ids: names of the samples, see `Guard.review`.

        Raises:
            RuntimeError: the processes can't reach each other; gradients are cleared.
        """
        result, parameters, held = Round(), trainable(self._guard.model), held_batch(batch)
        clear(parameters)
        local = self._model.no_sync() if isinstance(self._model, DistributedDataParallel) else nullcontext()
        try:
            failure: Exception | None = None
            try:
                with local:
                    yield result
            except Exception as error:  # third-party training code may raise anything
                failure = error
            result.decision = self._decide(batch, held, ids, failure)
            clear(parameters)
            self._average(result)
        except BaseException:
            clear(parameters)
            raise

    def _decide(
        self,
        batch: Batch | Sequence[Any],
        held: Batch | Sequence[Any],
        ids: Sequence[object] | None,
        failure: Exception | None,
    ) -> Decision:
        """This rank's decision, with the contribution that follows in the flat buffer."""
        guard = self._guard
        self._flat.zero_()
        if failure is not None:
            return guard.withhold(failure)
        try:
            refuse_changed(batch, held)
            decision = guard.review(held, gradients(guard.model), ids=ids, local_steps=1)
            if decision.update is not None:
                decision = guard.confirm(decision)
            if decision.update is not None:
                self._fill(decision.update)
        except Exception as error:  # whatever goes wrong withholds
            self._flat.zero_()
            return guard.withhold(error)
        return decision

    def _fill(self, update: Sequence[Tensor]) -> None:
        parts = self._flat[:-1].split_with_sizes([tensor.numel() for tensor in update])
        for part, tensor in zip(parts, update, strict=True):
            part.copy_(tensor.reshape(-1))
        if not bool(torch.isfinite(self._flat).all()):
            raise ValueError("the update holds something that isn't a finite number")
        self._flat[-1] = 1.0

    def _average(self, result: Round) -> None:
        self._count.copy_(self._flat[-1:])
        dist.all_reduce(self._count, group=self._group)
        result.num_contributing = int(self._count.item())
        if result.num_contributing < self._min_ranks:
            return
        dist.all_reduce(self._flat, group=self._group)
        average = self._flat[:-1] / self._flat[-1]
        parameters = trainable(self._guard.model)
        parts = average.split_with_sizes([parameter.numel() for parameter in parameters])
        write(self._guard.model, parts)
        result.averaged = True

    def _agree(self, problem: str | None, sizes: list[int]) -> None:
        """All ranks raise where one has a problem or other sizes: the others would wait for it."""
        numbers = torch.tensor([int(problem is not None), *sizes], dtype=torch.int64, device=self._flat.device)
        most, least = numbers.clone(), numbers.clone()
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._group)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
        if problem is not None:
            raise SettingsError(problem)
        if int(most[0]):
            raise SettingsError("another rank can't take part; its own error says why")
        if not torch.equal(most, least):
            raise SettingsError("expected the same model and min_ranks on all ranks, found different ones")
