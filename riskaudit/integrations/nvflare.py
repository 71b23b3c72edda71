"""The guard for NVFLARE: a seal in the training script, and a filter that lets only what is sealed leave the site.

A filter sees arrays but no batch, so the review happens in the script, and a ticket in the result's metadata says
what was reviewed: its SHA-256 and when it expires. `RiskFilter` takes the ticket off and withholds whatever doesn't
match one. It is no signature: it is made in the process that runs the job's code, which can make one without a review.
docs/nvflare.md has a script with it, and how the filter is installed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils.fobs.decomposers.via_downloader import LazyDownloadRef

from riskaudit.errors import GuardError
from riskaudit.guard import Decision, Guard, Recording
from riskaudit.guard.decision import describe, name_error
from riskaudit.integrations.allowance import MAX_EXAMPLES, Allowance, Metrics, is_round_number, number_of_samples
from riskaudit.integrations.local_step import Array, LocalStep, inspect, review, review_round
from riskaudit.release import Batch

TICKET = "riskaudit_ticket"
# Seconds that a ticket is good for: a script sends right after the review.
LIFETIME = 600.0
# What aggregators weight by.
COUNTS = (MetaKey.NUM_STEPS_CURRENT_ROUND,)
ROUNDS = (AppConstants.CURRENT_ROUND, AppConstants.START_ROUND, AppConstants.NUM_ROUNDS)
_KINDS = {ParamsType.FULL: DataKind.WEIGHTS, ParamsType.DIFF: DataKind.WEIGHT_DIFF}
_logger = logging.getLogger(__name__)


def may_train(received: FLModel, guard: Guard, inputs: torch.Tensor) -> Decision:
    """Look at the received model right after ``flare.receive``; what looks changed to leak isn't to be trained on.

    Where the decision is to block, send a result without params, metrics and meta.

    Args:
        received: of ``flare.receive``.
        guard: of the model; its weights stay as they are.
        inputs: [N, ...] in data units, of the client; 32 or more for all signs.

    Returns:
        "allow", or "block" with one sentence. Nothing is raised but for interrupts: whatever goes wrong blocks.
    """
    try:
        decision = inspect(guard, _arrays(received.params), inputs)
    except Exception as error:  # the arrays may be anything
        decision = guard.withhold(describe(error, "the inspection failed with "))
    if decision.action == "block":
        _logger.warning("not trained: %s", "; ".join(decision.reasons))
    return decision


def seal(
    model: FLModel,
    received: FLModel,
    guard: Guard,
    batch: Batch | Sequence[Any],
    *,
    step_size: float | None,
    ids: Sequence[object] | None = None,
    lifetime: float = LIFETIME,
) -> Decision:
    """Review a result right before ``flare.send``, and change it to what may be sent.

    Send differences (params_type DIFF) rather than weights: a server that gets weights from nobody goes on with an
    empty model. Allowed parameters get a ticket, sanitised ones take the place of the old, and where nothing may be
    sent the result is left empty: send it all the same, the server goes on without it.

    Args:
        model: the result; its params, metrics and meta are changed.
        received: of ``flare.receive``.
        guard: with the model that was trained.
        batch: inputs [B, ...] in data units and targets [B, ...] of the one local step.
        step_size: learning rate of that step; None where the result holds the gradient itself.
        ids: of the samples, for a ledger.
        lifetime: of the ticket, seconds.

    Returns:
        The decision. Nothing is raised but for interrupts: whatever goes wrong withholds the result.
    """

    def decide(outgoing: Mapping[str, Array], weights: Mapping[str, Array], difference: bool) -> Decision:
        step = LocalStep(guard, batch, step_size, ids)
        return review(step, weights, outgoing, difference=difference, round=received.current_round)

    return _sealed(model, received, decide, lambda: number_of_samples(batch), lifetime)


def seal_round(model: FLModel, received: FLModel, recording: Recording, *, lifetime: float = LIFETIME) -> Decision:
    """`seal` for the result of a whole round of local training.

    Args:
        model: the result; its params, metrics and meta are changed.
        received: of ``flare.receive``.
        recording: of ``Guard.record``, begun when the received weights were in the model.
        lifetime: of the ticket, seconds.

    Returns:
        The decision. Nothing is raised but for interrupts: whatever goes wrong withholds the result.
    """

    def decide(outgoing: Mapping[str, Array], weights: Mapping[str, Array], difference: bool) -> Decision:
        return review_round(recording, weights, outgoing, difference=difference, round=received.current_round)

    return _sealed(model, received, decide, lambda: recording.num_samples, lifetime)


def _sealed(
    model: FLModel,
    received: FLModel,
    decide: Callable[[Mapping[str, Array], Mapping[str, Array], bool], Decision],
    count: Callable[[], int],
    lifetime: float,
) -> Decision:
    """The decision about a result, once the result is what may be sent."""
    try:
        kind = _KINDS[model.params_type or ParamsType.FULL]
        decision = decide(_arrays(model.params), _arrays(received.params), kind == DataKind.WEIGHT_DIFF)
        if decision.update is not None:
            if decision.action == "sanitise" or decision.reset:
                model.params = {
                    name: torch.from_numpy(value) if isinstance(model.params[name], torch.Tensor) else value
                    for name, value in decision.update.items()
                }
            digest = _digest(kind, decision.update)
            ticket = {"digest": digest, "expires": time.time() + lifetime, "samples": count()}
            model.meta = {**(model.meta or {}), TICKET: ticket}
            return decision
    except Exception as error:  # the arrays may be anything, and their errors may quote them
        decision = Decision("block", None, [describe(error)])
    _logger.warning("withheld: %s", "; ".join(decision.reasons))
    model.params, model.metrics, model.meta = {}, None, {}
    return decision


@contextmanager
def discreet() -> Iterator[None]:
    """Let an exception out of a training script without its words.

    NVFLARE logs the traceback as an error, and its sites send error logs to the server unless told not to.

    Raises:
        GuardError: in the place of any exception, naming only its type and where it was raised.
    """
    try:
        yield
    except Exception as error:
        # From None, so that no traceback shows the old exception.
        raise GuardError(f"the training script failed with {name_error(error)}") from None


class RiskFilter(Filter):  # type: ignore[misc]
    """Lets a task result pass if its parameters carry a ticket that fits, else sends an empty one in its place.

    Not a DXOFilter, which hands on without asking whatever isn't a DXO, carries an error, or holds no data but only
    metadata. Results are made anew: parameters, the rounds, a number of steps up to the samples reviewed, and rounded
    numbers under allowed names. Errors keep their return code and nothing else. Never raises, since that would abort
    the job.

    Args:
        metrics: names that may leave, as metrics or metadata, besides the number of steps; with ranges or without.
        max_examples: the largest number of steps in results that hold no parameters.

    Raises:
        SettingsError: a range or a largest number that is none.
    """

    def __init__(self, metrics: Metrics = (), max_examples: int = MAX_EXAMPLES) -> None:
        super().__init__()
        self._allowance = Allowance(COUNTS, metrics, max_examples)

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """What may leave of a result."""
        try:
            code = shareable.get_return_code()
            if code != ReturnCode.OK:
                codes = [value for name, value in vars(ReturnCode).items() if name.isupper()]
                return make_reply(code if code in codes else ReturnCode.EXECUTION_EXCEPTION)
            passed = self._passed(from_shareable(shareable)).to_shareable()
            for name in ROUNDS:
                if is_round_number(shareable.get_header(name)):
                    passed.set_header(name, shareable.get_header(name))
            return passed
        except GuardError as error:
            _logger.warning("withheld: %s", error)
        except Exception as error:  # a result may hold anything
            _logger.warning("withheld: the filter failed with %s", type(error).__name__)
        return DXO(DataKind.WEIGHTS, data={}).to_shareable()

    def _passed(self, dxo: DXO) -> DXO:
        if dxo.data_kind == DataKind.METRICS:
            return DXO(DataKind.METRICS, self._allowance.restrict(dxo.data), self._meta(dxo, None))
        if dxo.data_kind not in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
            raise GuardError("a result of another kind than weights and metrics is nothing that the guard reviews")
        ticket = dxo.meta.get(TICKET)
        if not isinstance(ticket, Mapping):
            raise GuardError("the result carries no ticket; call riskaudit.integrations.nvflare.seal before flare.send")
        if not time.time() < float(ticket["expires"]) < math.inf:
            raise GuardError("the result's ticket has expired; seal it right before it is sent")
        arrays = _arrays(dxo.data)
        if _digest(dxo.data_kind, arrays) != ticket["digest"]:
            raise GuardError("the result isn't the one that was reviewed; send it as seal left it, and filter it after")
        # In an order of our own, and copied: neither the order of the names nor what lies behind an array leaves.
        data = {name: np.array(arrays[name]) for name in sorted(arrays)}
        return DXO(dxo.data_kind, data, self._meta(dxo, int(ticket["samples"])))

    def _meta(self, dxo: DXO, samples: int | None) -> dict[str, Any]:
        meta = self._allowance.restrict(dxo.meta, samples)
        metrics = self._allowance.restrict(dxo.meta.get(MetaKey.INITIAL_METRICS) or {}, samples)
        return {**meta, MetaKey.INITIAL_METRICS: metrics} if metrics else meta


def _arrays(params: Mapping[str, Any]) -> dict[str, Array]:
    """Parameters as numpy arrays, which is what a filter sees of a script's tensors."""
    arrays = {}
    for name, value in params.items():
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        if isinstance(array, LazyDownloadRef):
            raise GuardError(
                "the parameters are places to download them from, not arrays; use NVFLARE 2.9 or newer, which fetches "
                "what a process of its own has made before it asks the filters"
            )
        if not isinstance(name, str) or not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise GuardError("the parameters hold something that isn't an array of numbers")
        arrays[name] = array
    return arrays


def _digest(kind: str, arrays: Mapping[str, Array]) -> str:
    """Hex SHA-256 over the kind, names, shapes, dtypes and bytes, whatever the order of the names."""
    digest = hashlib.sha256(f"{DataKind(kind).value} ".encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"{len(name)} {name} {value.shape} {value.dtype.str} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
