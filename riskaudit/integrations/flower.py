"""The guard as a Flower client mod; docs/flower.md has a client with it, and what leaves in a reply.

A mod sees messages only, so the training function hands over what the review needs. What isn't allowed to leave is
answered by an error that is the same whatever the reason. With secure aggregation the guard comes last,
mods=[secaggplus_mod, guard_mod], and reviews before anything is masked.

A mod is a part of the app. It protects the clients of those who write the app, not against them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.guard import Guard, Recording
from riskaudit.guard.batches import held_batch
from riskaudit.guard.decision import name_error
from riskaudit.integrations.allowance import MAX_EXAMPLES, Allowance, Metrics, number_of_samples
from riskaudit.integrations.local_step import LocalStep, inspect, review, review_round
from riskaudit.release import Batch

# flwr.common.constant.ErrorCode.MOD_FAILED_PRECONDITION, which flwr.app doesn't export.
MOD_FAILED_PRECONDITION = 6
WITHHELD = "riskaudit: withheld"
# What strategies weight by, in the message API and in the older one.
COUNTS = ("num-examples", "num_examples")
# The older API's record of a free text, and of the code that goes with it, one of five.
STATUS, STATUS_CODE, STATUS_TEXT, STATUS_CODES = "status", "code", "message", range(5)
# Records that it wants to find even where nothing is in them.
EXPECTED = ("fitres.metrics", "evaluateres.metrics")
# Names of records, in the message API by custom and in the older one by rule: a name is a text that leaves as well.
RESULTS = ("fitres.num_examples", "evaluateres.num_examples", "evaluateres.loss", "getpropertiesres.properties")
RECORDS = ("metrics", *RESULTS, *EXPECTED)
ARRAYS = ("arrays", "fitres.parameters")
STATUSES = tuple(f"{kind}.{STATUS}" for kind in ("fitres", "evaluateres", "getpropertiesres", "getparametersres"))
# Where the client's context keeps the number of reviews.
STATE = "riskaudit"

_handed: ContextVar[list[LocalStep | Recording] | None] = ContextVar("riskaudit_handed", default=None)
_logger = logging.getLogger(__name__)


def hand_over(
    guard: Guard, batch: Batch | Sequence[Any], *, step_size: float | None, ids: Sequence[object] | None = None
) -> None:
    """Tell `guard_mod` what the message that is being made was computed from; once per message.

    Args:
        guard: with the model that was trained.
        batch: inputs [B, ...] in data units and targets [B, ...] of the one local step.
        step_size: learning rate of that step; None where the reply holds the gradient itself.
        ids: of the samples, for a ledger.

    Raises:
        GuardError: no `guard_mod` is there to review anything.
        SettingsError: a step_size of 0 or less.
    """
    handed = _handed.get()
    if handed is None:
        raise GuardError("no guard_mod is among the mods, so nothing would be reviewed; add it to the ClientApp's mods")
    handed.append(LocalStep(guard, held_batch(batch), step_size, None if ids is None else list(ids)))


def hand_over_round(recording: Recording) -> None:
    """Tell `guard_mod` of a whole round of local training; once per message, when the training is over.

    Args:
        recording: of ``Guard.record``, begun when the received weights were in the model.

    Raises:
        GuardError: no `guard_mod` is there to review anything.
    """
    handed = _handed.get()
    if handed is None:
        raise GuardError("no guard_mod is among the mods, so nothing would be reviewed; add it to the ClientApp's mods")
    handed.append(recording)


class GuardMod:
    """A client mod that reviews what `hand_over` or `hand_over_round` told of, and lets nothing else pass.

    Replies to training must hold exactly one record of arrays. Of the metrics, and of the older API's configurations,
    only single numbers under allowed names stay, in records with allowed names: the number of examples, a whole number
    up to the samples handed over, and what ``metrics`` names, rounded. Replies to anything else may hold no arrays.

    Args:
        metrics: names that may leave besides the number of examples, with the range of each or without.
        records: names of records of metrics besides the usual ones.
        max_examples: the largest number of examples in replies to anything but training.
        inspect: returns a guard and inputs [N, ...] of the client; the received model is then looked at before the app
            gets the message (`Guard.inspect`), and one that looks changed to leak is never trained on.

    Raises:
        SettingsError: a range or a largest number that is none.
    """

    def __init__(
        self,
        metrics: Metrics = (),
        records: Iterable[str] = (),
        max_examples: int = MAX_EXAMPLES,
        inspect: Callable[[], tuple[Guard, Tensor]] | None = None,
    ) -> None:
        self._allowance = Allowance(COUNTS, metrics, max_examples)
        self._records, self._inspect = frozenset({*RECORDS, *records}), inspect

    def __call__(self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        """What may leave of the reply; never raises but for interrupts."""
        handed: list[LocalStep | Recording] = []
        token = _handed.set(handed)
        try:
            self._refuse_changed(message)
            reply = self._reviewed(message, context, call_next(message, context), handed)
        except GuardError as error:  # says what to do, and nothing private
            _logger.warning("withheld: %s", error)
            reply = None
        except Exception as error:
            # An app's errors quote its data, so only its kind and origin are logged, and only here.
            _logger.warning("withheld: the app failed with %s", name_error(error))
            reply = None
        finally:
            _handed.reset(token)
        return Message(Error(MOD_FAILED_PRECONDITION, WITHHELD), reply_to=message) if reply is None else reply

    def _refuse_changed(self, message: Message) -> None:
        """Refuse to train on a received model that looks changed to leak, before the app gets it.

        Raises:
            GuardError: it does, or can't be inspected.
        """
        if self._inspect is None or not _is_training(message):
            return
        received = message.content.array_records
        if len(received) != 1:
            raise GuardError(f"expected one received record of arrays, found {len(received)}")
        guard, inputs = self._inspect()
        decision = inspect(guard, _arrays(next(iter(received.values()))), inputs)
        if decision.action == "block":
            raise GuardError("; ".join(decision.reasons))

    def _reviewed(
        self, message: Message, context: Context, reply: Message, handed: list[LocalStep | Recording]
    ) -> Message | None:
        if reply.has_error():
            raise GuardError("the app answered with an error, whose words may hold anything")
        outgoing = reply.content.array_records
        if not _is_training(message):
            if outgoing:
                raise GuardError("a reply that isn't to training holds arrays, which nobody reviews; send none")
            return Message(self._restricted(reply.content, None), reply_to=message)
        received = message.content.array_records
        if len(handed) != 1 or len(received) != 1 or len(outgoing) != 1:
            raise GuardError(
                f"expected one hand-over, one received and one outgoing record of arrays, found {len(handed)}, "
                f"{len(received)} and {len(outgoing)}; call hand_over once, for a single local step, or hand_over_round"
            )
        (name, record), (asked, weights) = next(iter(outgoing.items())), next(iter(received.items()))
        if name not in (*ARRAYS, asked):
            raise GuardError(f"expected the arrays under the name {ARRAYS[0]!r} or that of those received")
        told, number = handed[0], _counted(context)
        came, leaves = _arrays(weights), _arrays(record)
        if isinstance(told, LocalStep):
            content = self._restricted(reply.content, number_of_samples(told.batch))
            decision = review(told, came, leaves, round=number)
        else:
            content = self._restricted(reply.content, told.num_samples)
            decision = review_round(told, came, leaves, round=number)
        if decision.update is None:
            _logger.warning("withheld: %s", "; ".join(decision.reasons))
            return None
        # Made anew from the arrays that were reviewed: a record may hold more bytes than its arrays show.
        content.array_records[name] = ArrayRecord({key: Array(value) for key, value in decision.update.items()})
        return Message(content, reply_to=message)

    def _restricted(self, content: RecordDict, samples: int | None) -> RecordDict:
        """The reply without its arrays, and with nothing but allowed numbers in allowed records."""
        restricted = RecordDict()
        for name in self._records:
            record = content.get(name)
            if isinstance(record, MetricRecord | ConfigRecord):
                numbers = self._allowance.restrict(record, samples)
                if numbers or name in EXPECTED:
                    restricted[name] = type(record)(numbers)
        for name in STATUSES:
            record = content.get(name)
            if isinstance(record, ConfigRecord) and record.get(STATUS_CODE) in STATUS_CODES:
                restricted[name] = ConfigRecord({STATUS_CODE: record[STATUS_CODE], STATUS_TEXT: ""})
        left_out = [
            name for name, record in content.items() if name not in restricted and not isinstance(record, ArrayRecord)
        ]
        if left_out:
            allow = "GuardMod(records=..., metrics=...) allows them"
            _logger.warning("%d records were left out, whose names or numbers may not leave; %s", len(left_out), allow)
        return restricted


guard_mod = GuardMod()


def _is_training(message: Message) -> bool:
    return message.metadata.message_type.split(".")[0] == MessageType.TRAIN


def _arrays(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    return {key: value.numpy() for key, value in record.items()}


def _counted(context: Context) -> int:
    """Number of this review; every message may get a process of its own, in which a guard would count from 1."""
    state = context.state.config_records.get(STATE, ConfigRecord())
    number = int(state.get("reviews", 0)) + 1  # type: ignore[arg-type]
    context.state[STATE] = ConfigRecord({"reviews": number})
    return number
