"""The guard before every step of a PyTorch optimizer, in one process; docs/pytorch.md has a training with it.

The gradient is the update: whoever sees the weights before and after a step of SGD sees it. What is withheld leaves
weights, momentum and step counters as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard import Decision, Guard
from riskaudit.guard.batches import held_batch
from riskaudit.integrations.gradients import add_noise, clear, gradients, trainable, write
from riskaudit.release import Batch

__all__ = ["StepGuard", "add_noise"]


class StepGuard:
    """Reviews the gradients of one model whenever its optimizer is about to use them.

    Each step needs its batch, handed over by `expect`; a step without one is withheld. What the optimizer's other
    hooks do after this one, or other code writes into the weights, isn't seen: attach it last.

    Args:
        guard: of the model whose parameters the optimizer holds.
        optimizer: with exactly the model's trainable parameters.

    Attributes:
        decision: about the last step; None before the first.

    Raises:
        SettingsError: the optimizer holds other parameters.
    """

    def __init__(self, guard: Guard, optimizer: torch.optim.Optimizer) -> None:
        if not _same_parameters(guard, optimizer):
            raise SettingsError("expected an optimizer of exactly the guarded model's trainable parameters")
        self.decision: Decision | None = None
        self._guard = guard
        self._expected: tuple[Batch | Sequence[Any], Sequence[object] | None] | None = None
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def expect(self, batch: Batch | Sequence[Any], *, ids: Sequence[object] | None = None) -> None:
        """Hand over what the next step's gradients were computed from: all of it, where they were accumulated.

        Args:
            batch: inputs [B, ...] and targets [B, ...].
            ids: names of the samples, see `Guard.review`.
        """
        self._expected = (held_batch(batch), None if ids is None else list(ids))

    def close(self) -> None:
        """Let the optimizer go unguarded."""
        self._handle.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        expected, self._expected = self._expected, None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            clear(parameters)
            self.decision = self._guard.withhold("the optimizer was given a closure")
            # It would compute gradients anew after this hook; only an exception stops the step now.
            raise GuardError("expected a step without a closure; call backward() before step()")
        if expected is None:
            self.decision = self._guard.withhold("the step's batch was not handed over")
        elif not _same_parameters(self._guard, optimizer):
            self.decision = self._guard.withhold("the optimizer holds other parameters than the guarded model")
        else:
            batch, ids = expected
            self.decision = self._review(batch, ids)
        if self.decision.update is None:
            clear(parameters)

    def _review(self, batch: Batch | Sequence[Any], ids: Sequence[object] | None) -> Decision:
        try:
            decision = self._guard.review(batch, gradients(self._guard.model), ids=ids, local_steps=1)
            if decision.update is not None:
                write(self._guard.model, decision.update)
        except Exception as error:  # whatever goes wrong withholds
            return self._guard.withhold(error)
        return decision


def _same_parameters(guard: Guard, optimizer: torch.optim.Optimizer) -> bool:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    optimized = {id(parameter) for parameter in parameters if parameter.requires_grad}
    return optimized == set(map(id, trainable(guard.model)))
