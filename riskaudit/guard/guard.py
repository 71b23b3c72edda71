"""`Guard`: audit, policy, ledger and log around one upload. Whatever goes wrong, nothing leaves."""

from __future__ import annotations

import functools
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard.assessment import Assessment
from riskaudit.guard.client import Client, LossLike
from riskaudit.guard.decision import Assessed, Decision, described, told
from riskaudit.guard.ledger import Account, Ledger, hide
from riskaudit.guard.log import AuditLog
from riskaudit.guard.review import Outcome, Review
from riskaudit.guard.updates import Update, UpdateLike, digest_of_model, digest_of_update
from riskaudit.policy import Exposure, Policy, Range
from riskaudit.priors import IsotropicPrior, Prior, load_prior
from riskaudit.release import Batch
from riskaudit.version import __version__

# How often a review starts over because somebody else's round entered the ledger meanwhile.
ATTEMPTS = 3


class Guard:
    """Reviews every update of one client before it leaves.

    The update is the mean over the batch of every sample's own release, with the noise that ``release`` names on its
    entries: `riskaudit scan` with the same release and B times the noise audits the same thing sample by sample. With
    reduction="sum" it is the sum instead, and `riskaudit scan` with the same release and noise audits the same.

    Args:
        model: the live model, whose weights the update was computed at. Never changed.
        loss_fn: name of a registered loss, module, or function of outputs and targets; the mean over the batch.
        policy: limits, and what to do.
        prior: what an attacker is taken to know of an input: a `Prior`, or a file of ``riskaudit prior fit``.
        prior_std: of the isotropic prior, data units per input coordinate, in the place of ``prior``.
        release: what the client does to the gradient, e.g. "gradient", "clip:1.0,gaussian:0.01"; clipping is per
            sample, noise is per entry of the update.
        ledger: file (or `Ledger`) that adds up what has left of each sample over all rounds.
        log: file (or `AuditLog`) that every decision is written to.
        dtype: that reviews are computed in.
        reduction: "mean" or "sum" over the batch, of which the update consists.

    Raises:
        SettingsError: settings that exclude each other, a policy without a limit, neither prior nor prior_std.
        RiskauditError: a loss, release, prior file, ledger or log that can't be used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossLike,
        policy: Policy,
        *,
        prior: Prior | str | Path | None = None,
        prior_std: float | None = None,
        release: str = "gradient",
        ledger: Ledger | str | Path | None = None,
        log: AuditLog | str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise SettingsError(f"expected reduction to be mean or sum, found {reduction!r}")
        if not policy.limits:
            raise SettingsError("expected a policy with a limit, found none; set max_revealed or min_rmse")
        if (prior is None) == (prior_std is None):
            raise SettingsError("expected either prior or prior_std: what an attacker knows of an input beforehand")
        if policy.max_total_revealed is not None and ledger is None:
            raise SettingsError("max_total_revealed counts over rounds; give a ledger to count in")
        if prior_std is not None:
            self.prior: Prior = IsotropicPrior(0.0, prior_std)
        else:
            self.prior = prior if isinstance(prior, Prior) else load_prior(str(prior))
        if ledger is not None and not isinstance(self.prior, IsotropicPrior):
            raise SettingsError("a ledger adds up what is revealed under an isotropic prior; give prior_std, not prior")
        self.model, self.policy, self.release = model, policy, release
        self.ledger = Ledger(ledger) if isinstance(ledger, str | Path) else ledger
        self.log = AuditLog(log) if isinstance(log, str | Path) else log
        summed = reduction == "sum"
        any_layer = policy.unknown_layers == "differentiate"
        self.client = Client(model, loss_fn, release, dtype, summed, any_layer)
        self._exact = functools.cache(lambda: Client(model, loss_fn, release, torch.float64, summed, any_layer))
        self._salt = secrets.token_bytes(32)
        self._rounds = 0

    def review(
        self, batch: Batch | Sequence[Any], update: UpdateLike, *, ids: Sequence[object] | None = None,
        round: int | None = None, assessed: Assessed | None = None,
    ) -> Decision:  # fmt: skip
        """Decide about an update before it leaves.

        Args:
            batch: inputs [B, ...] in data units and targets [B, ...] that the update was computed from.
            update: tensors (or arrays) like the trainable parameters, in their order or by name.
            ids: names of the samples, the same in every round, for a ledger; hashes of the inputs where not given.
            round: number for the log; counted where not given.
            assessed: of `assess` for the same batch and weights, where the update holds only the samples that it keeps.

        Returns:
            The decision. Nothing is raised but for interrupts: whatever goes wrong withholds the update.
        """
        started = time.monotonic()
        self._rounds += 1
        number = self._rounds if round is None else round
        try:
            decision = self._review(batch, update, ids, started, assessed)
        except Exception as error:  # the model and the loss are anybody's code
            decision = self._failed(update, _failure(error))
        return self._logged(replace(decision, round=number, seconds=time.monotonic() - started))

    def prepare(self, batch: Batch | Sequence[Any]) -> None:
        """Look at the model's layers before the first round, which would pay for it otherwise.

        Args:
            batch: a few samples of the shape and dtype that rounds have.

        Raises:
            RiskauditError: the model or the batch can't be reviewed; every round would be withheld.
        """
        self.client.refresh()
        prepared = self.client.batch(*_checked(batch))
        self.client.sample_bytes(prepared)

    def assess(self, batch: Batch | Sequence[Any], *, ids: Sequence[object] | None = None) -> Assessed:
        """Decide which samples may go into an update that isn't made yet, as if it left with the release's noise.

        Nothing may leave on the strength of this: make the update of the samples in ``kept`` and `review` it. Only a
        batch that is blocked is logged here, since no review follows.

        Args:
            batch: as for `review`.
            ids: as for `review`.

        Returns:
            What may go in. Nothing is raised but for interrupts: whatever goes wrong blocks the batch.
        """
        started = time.monotonic()
        try:
            assessed = self._assess(batch, ids, started)
        except Exception as error:  # the model and the loss are anybody's code
            assessed = Assessed("block", [], [_failure(error)])
        if assessed.action == "block":
            self._rounds += 1
            withheld = Decision(
                "block", None, assessed.reasons, assessed.exposures, self._rounds, model_digest=assessed.model_digest,
                seconds=time.monotonic() - started,
                products=0 if assessed.found is None else assessed.found.products,
            )  # fmt: skip
            return replace(assessed, withheld=self._logged(withheld))
        return assessed

    def withhold(self, reason: str | BaseException) -> Decision:
        """Withhold an upload of which there is nothing to review, and log it.

        Args:
            reason: a sentence without any private input, or the exception that left no update: only its kind and
                place are kept.
        """
        if isinstance(reason, BaseException):
            reason = f"the update was not made: {described(reason)}"
        return self._logged(Decision("block", None, [reason]))

    def confirm(self, decision: Decision, update: UpdateLike | None = None) -> Decision:
        """The decision again, right before sending: blocked if model or update aren't those that were reviewed.

        Args:
            decision: of `review`.
            update: what is about to be sent, where it isn't ``decision.update`` itself.
        """
        if decision.update is None:
            return decision
        try:
            if digest_of_model(self.model) != decision.model_digest:
                reason = "the model isn't the one that was reviewed; review the update again"
            elif digest_of_update(decision.update if update is None else update) != decision.update_digest:
                reason = "the update isn't the one that was reviewed; send decision.update as it is"
            else:
                return decision
        except Exception as error:  # what is compared may be anything by now
            reason = _failure(error)
        blocked = replace(decision, action="block", update=None, update_digest="", reasons=[reason])
        return self._logged(blocked)

    def upload(self, batch: Batch | Sequence[Any], *, ids: Sequence[object] | None = None) -> _Upload:
        """A context in which an update is made; reviewed when it ends.

            with guard.upload((inputs, targets)) as upload:
                upload.update = local_step(inputs, targets)
            if upload.decision.update is not None: ...

        An exception inside blocks the upload and goes on to the caller.
        """
        return _Upload(self, batch, ids)

    def reviewed(self, step: Callable[..., UpdateLike]) -> Callable[..., Decision]:
        """Decorator of a function that makes an update of a batch, its first argument: returns the decision."""

        @functools.wraps(step)
        def wrapped(batch: Batch | Sequence[Any], *args: object, **kwargs: object) -> Decision:
            try:
                update = step(batch, *args, **kwargs)
            except BaseException as error:
                self.withhold(error)
                raise
            return self.review(batch, update)

        return wrapped

    def close(self) -> None:
        """Let go of the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def _review(
        self, given: Batch | Sequence[Any], update_given: UpdateLike, names: Sequence[object] | None, started: float,
        assessed: Assessed | None,
    ) -> Decision:  # fmt: skip
        policy, client, end = self.policy, self.client, self._end(started)
        inputs, targets = _checked(given)
        total = len(inputs)
        if assessed is not None:
            inputs, targets, names = _kept(inputs, targets, names, assessed)
        client.refresh()
        update = Update.of(update_given, client.shapes).copied()
        batch, vector = client.batch(inputs, targets), update.vector()
        model_digest = digest_of_model(self.model)
        mean = client.mean(batch)
        mismatch = client.mismatch(vector, mean)
        if mismatch is not None:
            raise GuardError(mismatch)
        ids, groups = self._ids(inputs, names), _groups(targets)
        known = None if assessed is None else _known(assessed, batch, model_digest)
        for attempt in range(ATTEMPTS):
            accounts = None if self.ledger is None else self.ledger.accounts(ids)
            # What was found before somebody else's round entered the ledger isn't in the ledger's directions.
            found = None if known is None or attempt or not _current(known, ids, accounts) else replace(known, ids=ids)
            work = Review(batch, ids, groups, accounts, client, self._exact, self.prior, policy, end, found)
            outcome = work.decide(vector, mean)
            if assessed is not None and assessed.action == "sanitise":
                outcome = _after_dropping(outcome, assessed, total)
            if outcome.vector is None:
                return replace(outcome.decision(None), model_digest=model_digest)
            sent = update if outcome.vector is vector else update.like(outcome.vector)
            handed = sent.handed_back()
            digest = digest_of_update(handed)
            if self.ledger is None or _recorded(self.ledger, accounts or {}, ids, outcome, digest):
                return replace(outcome.decision(handed), model_digest=model_digest, update_digest=digest)
        raise GuardError("the ledger changed again and again during the review; let fewer clients share it")

    def _assess(self, given: Batch | Sequence[Any], names: Sequence[object] | None, started: float) -> Assessed:
        inputs, targets = _checked(given)
        self.client.refresh()
        batch, digest = self.client.batch(inputs, targets), digest_of_model(self.model)
        ids, groups = self._ids(inputs, names), _groups(targets)
        accounts = None if self.ledger is None else self.ledger.accounts(ids)
        work = Review(
            batch, ids, groups, accounts, self.client, self._exact, self.prior, self.policy, self._end(started)
        )
        outcome = work.decide(None, None)
        kept = [] if outcome.action == "block" else outcome.kept
        return Assessed(outcome.action, kept, outcome.reasons, outcome.exposures, outcome.found, digest)

    def _end(self, started: float) -> float:
        """Of the time, on the monotonic clock."""
        return math.inf if self.policy.budget_seconds is None else started + self.policy.budget_seconds

    def _ids(self, inputs: Tensor, names: Sequence[object] | None) -> list[str]:
        """Hidden ids; the inputs' own content names them where nobody else does."""
        if names is None:
            plain = [digest_of_update([one]) for one in inputs]
        else:
            plain = [str(name) for name in names]
            if len(plain) != len(inputs):
                raise GuardError(f"expected {len(inputs)} ids, one per sample, found {len(plain)}")
        if self.ledger is not None:
            hidden = [self.ledger.hidden(name) for name in plain]
            if len(set(hidden)) < len(hidden):
                raise GuardError(
                    "a sample occurs twice in the batch, which the ledger can't count; give each its own id"
                )
            return hidden
        distinct = [f"{name} {place}" if plain.count(name) > 1 else name for place, name in enumerate(plain)]
        return [hide(name, self._salt) for name in distinct]

    def _failed(self, update: UpdateLike, reason: str) -> Decision:
        """No decision was reached: withheld, unless the policy says otherwise."""
        if self.policy.on_failure == "block":
            return Decision("block", None, [reason])
        try:
            return Decision(
                "warn", update, [f"not reviewed: {reason}"],
                model_digest=digest_of_model(self.model), update_digest=digest_of_update(update),
            )  # fmt: skip
        except Exception as error:  # nobody knows what was handed in
            return Decision("block", None, [reason, _failure(error)])

    def _logged(self, decision: Decision) -> Decision:
        """The decision once the log has it; blocked where the log can't take it."""
        if self.log is None:
            return decision
        try:
            self.log.append(self._entry(decision))
        except Exception as error:
            reasons = [_failure(error), *decision.reasons]
            return replace(decision, action="block", update=None, update_digest="", reasons=reasons)
        return decision

    def _entry(self, decision: Decision) -> dict[str, Any]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "round": decision.round,
            "decision": decision.action,
            "reasons": decision.reasons,
            "limits": self.policy.limits,
            "release": self.release,
            "prior": self.prior.info().model_dump(mode="json", exclude_none=True),
            "samples": [_numbers(one) for one in decision.exposures],
            "noise_std": decision.noise_std,
            "dropped": decision.dropped,
            "seconds": round(decision.seconds, 6),
            "products": decision.products,
            "model_sha256": decision.model_digest,
            "update_sha256": decision.update_digest,
            "versions": {"riskaudit": __version__, "torch": str(torch.__version__)},
        }


@dataclass
class _Upload:
    """See `Guard.upload`."""

    guard: Guard
    batch: Batch | Sequence[Any]
    ids: Sequence[object] | None
    update: UpdateLike | None = None
    decision: Decision = field(default_factory=lambda: Decision("block", None, ["the upload isn't complete"]))

    def __enter__(self) -> _Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.decision = self.guard.withhold(error)
        elif self.update is None:
            self.decision = self.guard.withhold("no update was handed over")
        else:
            self.decision = self.guard.review(self.batch, self.update, ids=self.ids)


def _recorded(ledger: Ledger, accounts: dict[str, Account], ids: list[str], outcome: Outcome, digest: str) -> bool:
    """Enter what is about to leave; False where the accounts changed meanwhile."""
    after, found = {}, outcome.found
    for place in outcome.kept:
        if place not in found.information:
            raise GuardError("the ledger can't count samples that were not assessed; raise the budget")
        before = accounts.get(ids[place])
        after[ids[place]] = found.account(place, outcome.noise_total, len(outcome.kept), before)
    return ledger.record({name: accounts[name] for name in after if name in accounts}, after, digest) is not None


def _kept(
    inputs: Tensor, targets: Tensor, names: Sequence[object] | None, assessed: Assessed
) -> tuple[Tensor, Tensor, list[object] | None]:
    """The part of a batch that an assessment lets into the update.

    Raises:
        GuardError: nothing may.
    """
    if not assessed.kept:
        raise GuardError("no sample of this batch may go into an update")
    if names is not None and len(names) != len(inputs):
        raise GuardError(f"expected {len(inputs)} ids, one per sample, found {len(names)}")
    kept_names = None if names is None else [names[place] for place in assessed.kept]
    return inputs[assessed.kept], targets[assessed.kept], kept_names


def _known(assessed: Assessed, batch: Batch, model_digest: str) -> Assessment | None:
    """What an assessment found of the samples that it keeps.

    Raises:
        GuardError: it is of another model or of other samples.
    """
    if assessed.found is None:
        return None
    found = assessed.found.select(assessed.kept)
    same = torch.equal(found.batch.inputs, batch.inputs) and torch.equal(found.batch.targets, batch.targets)
    if assessed.model_digest != model_digest or not same:
        raise GuardError("the batch or the model isn't the one that was assessed; assess it again")
    return found


def _after_dropping(outcome: Outcome, assessed: Assessed, total: int) -> Outcome:
    """The outcome of a review of what an assessment left, told as the sanitising that it was."""
    action = "sanitise" if outcome.action == "allow" else outcome.action
    reasons = [*assessed.reasons, *outcome.reasons]
    return replace(outcome, action=action, reasons=reasons, dropped=outcome.dropped + total - len(assessed.kept))


def _checked(given: Batch | Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch that can be reviewed.

    Raises:
        GuardError: it can't.
    """
    pair = (given.inputs, given.targets) if isinstance(given, Batch) else tuple(given)
    if len(pair) != 2:
        raise GuardError(f"expected a batch of inputs and targets, found {len(pair)} things")
    inputs, targets = (torch.as_tensor(part) for part in pair)
    if not inputs.ndim or not len(inputs):
        raise GuardError("expected a batch of at least one sample, found none")
    if not targets.ndim or len(inputs) != len(targets):
        raise GuardError(f"expected as many targets as inputs, found {len(inputs)} inputs and targets of other length")
    if not inputs.is_floating_point():
        raise GuardError(f"expected inputs in floating point, found {inputs.dtype}; embed or scale them first")
    if not bool(torch.isfinite(inputs).all()) or not bool(torch.isfinite(targets.double()).all()):
        raise GuardError("the batch holds something that isn't a finite number")
    return inputs, targets


def _current(known: Assessment, ids: list[str], accounts: dict[str, Account] | None) -> bool:
    """Whether the sketches are in the directions that the ledger has by now."""
    if accounts is None:
        return True
    kept = {place: accounts.get(identifier) for place, identifier in enumerate(ids)}
    return all(
        account is None
        or (place in known.sketches and np.array_equal(known.sketches[place].directions, account.directions))
        for place, account in kept.items()
    )


def _groups(targets: Tensor) -> list[str | None]:
    """Classes, where targets are class numbers."""
    if targets.ndim != 1 or targets.is_floating_point():
        return [None] * len(targets)
    return [str(target) for target in targets.tolist()]


def _numbers(one: Exposure) -> dict[str, Any]:
    return {"id": one.id, "revealed": _ends(one.revealed), "rmse": _ends(one.rmse), "total": _ends(one.total_revealed)}


def _ends(found: Range | None) -> list[float] | None:
    if found is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None
    return [found.low, found.high]


def _failure(error: BaseException) -> str:
    return told(error, "the review failed with ")
