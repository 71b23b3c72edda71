"""Which received models a guard has looked at, and what it says of one that looks changed to leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riskaudit.audit.alarm import is_cross_entropy
from riskaudit.checks.received.judging import judge_model, refusal
from riskaudit.copying import copy_model
from riskaudit.errors import GuardError
from riskaudit.guard.base_client import BaseClient
from riskaudit.guard.batches import check_batch
from riskaudit.guard.decision import Decision, describe
from riskaudit.guard.snapshot import Snapshot, take_snapshot
from riskaudit.inputs import Loss
from riskaudit.policy import Policy
from riskaudit.release import Batch

# Weights that passed are remembered so many rounds.
_REMEMBERED = 8


class ReceivedModelError(GuardError):
    """A received model that shows signs of having been changed to leak, or that can't be inspected."""


class ReceivedModels:
    """The models of one client's rounds. The last one that passed is the previous round's for the next."""

    def __init__(self) -> None:
        self._passed: list[str] = []
        self._previous: nn.Module | None = None

    def inspect(self, model: nn.Module, loss: Loss, digest: str, inputs: Tensor) -> None:
        """Look at a model unless its weights have passed before.

        Args:
            model: with the weights as they were received; never changed.
            loss: that it is trained with.
            digest: of these weights.
            inputs: [N, *S] in data units, of the client.

        Raises:
            ReceivedModelError: a sign is flagged, or the model can't be inspected.
        """
        if digest in self._passed:
            return
        try:
            classifies = is_cross_entropy(loss)
            reason = refusal(judge_model(model, inputs, previous=self._previous, classifies=classifies).rows)
            kept = copy_model(model)
        except Exception as error:  # third-party code may raise anything
            raise ReceivedModelError(describe(error, "the received model can't be inspected: ")) from error
        if reason is not None:
            raise ReceivedModelError(f"{reason}; nothing may be trained on it")
        self._passed, self._previous = [*self._passed, digest][-_REMEMBERED:], kept

    def require(self, policy: Policy, client: BaseClient, snapshot: Snapshot, batch: Batch | Sequence[Any]) -> None:
        """Look at the model that is reviewed where the policy says so.

        Raises:
            ReceivedModelError: see `inspect`.
            GuardError: a batch that is none.
        """
        if policy.inspect_received:
            self.inspect(client.reviewed_model, client.live_loss, snapshot.model_digest, check_batch(batch)[0])

    def decide(self, model: nn.Module, loss: Loss, inputs: Tensor, received: Mapping[str, Any] | None) -> Decision:
        """Whether anything may be trained on a model: "allow", or "block" with one sentence; nothing is raised.

        Args:
            model: the live one; never changed.
            loss: likewise.
            inputs: [N, *S] in data units, of the client.
            received: entries of its state dict by name; what it holds now where not given.
        """
        try:
            model = model if received is None else with_weights(model, received)
            digest = take_snapshot(model=model, loss=loss.function).model_digest
            self.inspect(model, loss, digest, torch.as_tensor(inputs))
        except Exception as error:  # the model is third-party code
            return Decision("block", None, [describe(error, "the inspection failed with ")])
        return Decision("allow", None, [], model_digest=digest)


def with_weights(model: nn.Module, received: Mapping[str, Any]) -> nn.Module:
    """A copy of a model with other entries of its state dict.

    Raises:
        ReceivedModelError: they aren't the model's.
    """
    try:
        copied = copy_model(model)
        # Arrays that came over a wire are often not writeable, which torch warns of.
        values = {name: value if isinstance(value, Tensor) else np.array(value) for name, value in received.items()}
        copied.load_state_dict({name: torch.as_tensor(value) for name, value in values.items()})
    except Exception as error:  # what was received may be anything
        raise ReceivedModelError(describe(error, "the received weights can't be put into the model: ")) from error
    return copied
