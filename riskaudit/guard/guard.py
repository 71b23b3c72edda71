"""`Guard`: audit, policy, ledger and log around one upload. Whatever goes wrong, nothing leaves."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from riskaudit.auditing.targets import target_notes
from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard.assessment import Assessment
from riskaudit.guard.batches import HeldBatch, check_batch, classes_of
from riskaudit.guard.client import TOLERANCE, Client, LossLike
from riskaudit.guard.decision import Assessed, Decision, described, told
from riskaudit.guard.duplicates import canonical_id, content_id, duplicate_labels
from riskaudit.guard.keys import KeyFolder, TamperingError
from riskaudit.guard.ledger import Account, Ledger, hide
from riskaudit.guard.log import AuditLog, Position
from riskaudit.guard.noise_memory import NoiseMemory
from riskaudit.guard.noise_order import digit_width
from riskaudit.guard.noise_records import SECOND_DRAW, NoiseRound, RepetitionError
from riskaudit.guard.noise_tests import normal_scores
from riskaudit.guard.review import Outcome, Review
from riskaudit.guard.snapshot import Snapshot
from riskaudit.guard.updates import Update, UpdateLike, digest_of_update
from riskaudit.policy import Exposure, Policy, Range
from riskaudit.priors import IsotropicPrior, Prior, load_prior
from riskaudit.release import Batch
from riskaudit.version import __version__

# How often a review starts over because somebody else's round entered the ledger meanwhile.
ATTEMPTS = 3
FORGETS = (
    "without a ledger, noise and sanitised updates are remembered until this process ends: a later one can't tell "
    "whether noise comes again"
)


@dataclass(frozen=True, eq=False)
class _Binding:
    """What a decision or an assessment holds for, in the guard's own keeping, whatever is done to the object itself.

    Attributes:
        snapshot: of model and loss.
        update_digest: of what may be sent; empty for an assessment.
        kept: places in the batch of the samples that may go into an update.
        found: what is known of the batch.
    """

    snapshot: Snapshot
    update_digest: str = ""
    kept: tuple[int, ...] = ()
    found: Assessment | None = None


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
        keys: folder of the key and the counters of ledger and log; see `riskaudit.guard.keys` for the default.
        dtype: that reviews are computed in.
        reduction: "mean" or "sum" over the batch, of which the update consists.
        local_steps: how many local steps every update is made of, where the caller makes sure of it. Only 1 can be
            reviewed. None: without noise the update itself shows it, with noise it is withheld unless `review` is told
            or the policy accepts it.

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
        keys: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        reduction: Literal["mean", "sum"] = "mean",
        local_steps: int | None = None,
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
            self.prior = copy.deepcopy(prior) if isinstance(prior, Prior) else load_prior(str(prior))
        if ledger is not None and not isinstance(self.prior, IsotropicPrior):
            raise SettingsError("a ledger adds up what is revealed under an isotropic prior; give prior_std, not prior")
        self.model, self.policy, self.release, self.local_steps = model, policy, release, local_steps
        folder = KeyFolder(keys)
        self._tampering: TamperingError | None = None
        self.ledger: Ledger | None = None
        try:
            self.ledger = Ledger(ledger, keys=folder) if isinstance(ledger, str | Path) else ledger
        except TamperingError as error:
            # Withheld at every review, and so logged.
            self._tampering = error
        self.log = AuditLog(log, keys=folder) if isinstance(log, str | Path) else log
        summed = reduction == "sum"
        any_layer = policy.unknown_layers == "differentiate"
        self.client = Client(model, loss_fn, release, dtype, summed, any_layer)
        self._exact = functools.cache(lambda: Client(model, loss_fn, release, torch.float64, summed, any_layer))
        self._salt = secrets.token_bytes(32)
        self._rounds = 0
        self._memory = NoiseMemory(self.ledger)
        # Noise that a later process could compare with is in the ledger; who has none is told so once.
        self._forgets = ledger is None and (self.client.noise is not None or policy.on_violation == "sanitise")
        self._decided: WeakKeyDictionary[Decision, _Binding] = WeakKeyDictionary()
        self._assessed: WeakKeyDictionary[Assessed, _Binding] = WeakKeyDictionary()

    def review(
        self, batch: Batch | Sequence[Any], update: UpdateLike, *, ids: Sequence[object] | None = None,
        round: int | None = None, assessed: Assessed | None = None, local_steps: int | None = None,
    ) -> Decision:  # fmt: skip
        """Decide about an update before it leaves.

        Args:
            batch: inputs [B, ...] in data units and targets [B, ...] that the update was computed from.
            update: tensors (or arrays) like the trainable parameters, in their order or by name.
            ids: names of the samples, the same in every round, for a ledger; hashes of the inputs where not given.
            round: number for the log; counted where not given.
            assessed: of `assess` for the same batch and weights, where the update holds only the samples that it keeps.
            local_steps: how many local steps the update is made of; the guard's own where not given.

        Returns:
            The decision. Nothing is raised but for interrupts: whatever goes wrong withholds the update.
        """
        started = time.monotonic()
        self._rounds += 1
        number = self._rounds if not _is_count(round) else round
        snapshot: Snapshot | None = None
        warnings: list[str] = []
        try:
            if round is not None and not _is_count(round):
                raise GuardError(f"expected the round as a whole number of at least 0, found {round!r}")
            snapshot = self.client.refresh()
            self._refuse_tampering()
            decision = self._review(batch, update, ids, started, assessed, snapshot, local_steps, warnings)
            self._refuse_change(snapshot)
        except Exception as error:  # the model and the loss are third-party code
            decision = self._failed(update, error, snapshot)
        if decision.update is not None and self._forgets:
            self._forgets = False
            decision = replace(decision, note=FORGETS)
        seconds = time.monotonic() - started
        return self._issued(replace(decision, round=number, seconds=seconds, warnings=warnings), snapshot)

    def prepare(self, batch: Batch | Sequence[Any]) -> None:
        """Look at the model's layers before the first round, which would pay for it otherwise.

        Args:
            batch: a few samples of the shape and dtype that rounds have.

        Raises:
            RiskauditError: the model or the batch can't be reviewed; every round would be withheld.
        """
        self.client.refresh()
        prepared = self.client.batch(*check_batch(batch))
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
        binding: _Binding | None = None
        try:
            self._refuse_tampering()
            assessed, binding = self._assess(batch, ids, started)
            self._refuse_change(binding.snapshot)
        except Exception as error:  # the model and the loss are third-party code
            assessed = Assessed("block", [], [_failure(error)])
        if assessed.action == "block":
            self._rounds += 1
            products = 0 if binding is None or binding.found is None else binding.found.products
            withheld = Decision(
                "block", None, assessed.reasons, assessed.exposures, self._rounds, model_digest=assessed.model_digest,
                seconds=time.monotonic() - started, products=products,
            )  # fmt: skip
            assessed = replace(assessed, withheld=self._logged(withheld))
        if binding is not None:
            self._assessed[assessed] = binding
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
        """The decision again, right before sending: blocked if model, loss or update aren't those that were reviewed.

        Args:
            decision: of `review` of this guard, itself: a copy of it is no decision.
            update: what is about to be sent, where it isn't ``decision.update`` itself.
        """
        if decision.update is None:
            return decision
        try:
            binding = self._decided.get(decision)
            if binding is None:
                reason = "the decision isn't one that this guard made; confirm what review returned, unchanged"
            elif (path := binding.snapshot.difference(self.client.observe())) is not None:
                reason = f"the model isn't the one that was reviewed ({path} has changed); review the update again"
            elif digest_of_update(decision.update if update is None else update) != binding.update_digest:
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
        return _Upload(self, HeldBatch(batch), ids)

    def reviewed(self, step: Callable[..., UpdateLike]) -> Callable[..., Decision]:
        """Decorator of a function that makes an update of a batch, its first argument: returns the decision."""

        @functools.wraps(step)
        def wrapped(batch: Batch | Sequence[Any], *args: object, **kwargs: object) -> Decision:
            with self.upload(batch) as upload:
                upload.update = step(batch, *args, **kwargs)
            return upload.decision

        return wrapped

    def close(self) -> None:
        """Let go of the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def _review(
        self, given: Batch | Sequence[Any], update_given: UpdateLike, names: Sequence[object] | None, started: float,
        assessed: Assessed | None, snapshot: Snapshot, local_steps: int | None, warnings: list[str],
    ) -> Decision:  # fmt: skip
        policy, client, end = self.policy, self.client, self._end(started)
        inputs, targets = check_batch(given)
        total, binding = len(inputs), None if assessed is None else self._binding(assessed)
        if binding is not None:
            inputs, targets, names = _kept(inputs, targets, names, binding)
        update = Update.of(update_given, client.shapes)
        batch, vector = client.batch(inputs, targets), update.vector()
        model_digest = snapshot.model_digest
        mean = client.mean(batch)
        mismatch = client.mismatch(vector, mean)
        if mismatch is not None:
            raise GuardError(mismatch)
        pattern = client.pattern(vector, mean)
        if pattern is not None:
            return Decision("block", None, [pattern], model_digest=model_digest)
        warnings += [*client.loss_warnings(batch), *target_notes(batch.targets)]
        unproven = self._unproven_step(mean, local_steps)
        if unproven is not None:
            # Nothing may leave; the numbers of one step are worked out all the same, for whoever reads the decision.
            policy = replace(policy, on_violation="block")
        key = _sanitising_key(update, batch, model_digest, noisy=client.noise is not None)
        again = self._sanitised_before(key)
        if again is not None and unproven is None:
            return replace(again, model_digest=model_digest)
        ids, groups = self._ids(inputs, names), classes_of(targets)
        labels = duplicate_labels(inputs, ids)
        known = None if binding is None else _known(binding, batch, snapshot)
        for attempt in range(ATTEMPTS):
            position = None if self.log is None else self.log.position()
            accounts = None if self.ledger is None else self.ledger.accounts(ids, position)
            # What was found before somebody else's round entered the ledger isn't in the ledger's directions.
            found = None if known is None or attempt or not _current(known, ids, accounts) else replace(known, ids=ids)
            work = Review(batch, ids, groups, accounts, client, self._exact, self.prior, policy, end, found, labels)
            outcome = work.decide(vector, mean)
            warnings += [text for text in work.warnings if text not in warnings]
            if assessed is not None and binding is not None and assessed.action == "sanitise":
                outcome = _after_dropping(outcome, assessed.reasons, total - len(binding.kept))
            if unproven is not None:
                reasons = [unproven, *([] if outcome.action == "allow" else outcome.reasons)]
                outcome = replace(outcome, action="block", vector=None, reasons=reasons)
            if outcome.vector is None:
                return replace(outcome.decision(None), model_digest=model_digest)
            try:
                sent = update if outcome.vector is vector else update.like(outcome.vector, outcome.noise_total)
            except GuardError as error:  # a violation was found already, so nothing may let this pass any more
                reasons = [*outcome.reasons, f"sanitising failed: {error}"]
                return replace(outcome.decision(None), action="block", reasons=reasons, model_digest=model_digest)
            handed = sent.handed_back()
            digest = digest_of_update(handed)
            noise = self._noise_of(key, vector - mean, outcome, mean)
            try:
                repeated = self._memory.refuse_or_remember(noise)
                done = self.ledger is None or _recorded(
                    self.ledger, accounts or {}, ids, outcome, digest, position, noise
                )
            except RepetitionError as error:
                repeated = str(error)
            if repeated is not None:
                return Decision("block", None, [repeated], outcome.exposures, model_digest=model_digest)
            if done:
                decision = replace(outcome.decision(handed), model_digest=model_digest, update_digest=digest)
                return self._memory.remember_result(key, decision) if outcome.noise_added else decision
        raise GuardError("the ledger changed again and again during the review; let fewer clients share it")

    def _sanitised_before(self, key: str) -> Decision | None:
        """The first result for an update that was sanitised before: a second draw would average the first away."""
        known, first = self._memory.sanitised(key)
        if not known:
            return None
        if first is None or self.policy.judge(first.exposures).reasons:
            return Decision("block", None, [SECOND_DRAW])
        return replace(first, reasons=[*first.reasons, "it was sanitised before: the same result again"])

    def _noise_of(self, digest: str, residual: Tensor, outcome: Outcome, mean: Tensor) -> NoiseRound:
        """What is to be remembered of the client's noise, and of what sanitising made of it."""
        noise, sizes, noises = self.client.noise, [shape.numel() for shape in self.client.shapes.values()], []
        if noise is not None and outcome.vector is not None:
            sent = [outcome.vector - mean] if outcome.noise_added else []
            noises = [normal_scores(residual, noise), *sent]
        width = 0.0 if noise is None else digit_width((mean + residual).numpy(), noise.std)
        return self._memory.round_of(noises, sizes, digest, sanitised=bool(outcome.noise_added), width=width)

    def _assess(
        self, given: Batch | Sequence[Any], names: Sequence[object] | None, started: float
    ) -> tuple[Assessed, _Binding]:
        inputs, targets = check_batch(given)
        snapshot = self.client.refresh()
        batch = self.client.batch(inputs, targets)
        ids, groups = self._ids(inputs, names), classes_of(targets)
        position = None if self.log is None else self.log.position()
        accounts = None if self.ledger is None else self.ledger.accounts(ids, position)
        work = Review(
            batch, ids, groups, accounts, self.client, self._exact, self.prior, self.policy, self._end(started),
            labels=duplicate_labels(inputs, ids),
        )  # fmt: skip
        outcome = work.decide(None, None)
        kept = [] if outcome.action == "block" else outcome.kept
        assessed = Assessed(outcome.action, kept, outcome.reasons, outcome.exposures, snapshot.model_digest)
        return assessed, _Binding(snapshot, kept=tuple(kept), found=outcome.found)

    def _unproven_step(self, mean: Tensor, told: int | None) -> str | None:
        """Why an update may be of several local steps, each of which depends on the samples through the others.

        Returns:
            The reason; None where it is one step, by the numbers or by the caller's or the policy's word.

        Raises:
            GuardError: the caller says that it is of several.
        """
        steps = self.local_steps if told is None else told
        # 1.0 and True equal 1, but whoever says them needn't have meant a number of steps.
        if steps is not None and not (_is_count(steps) and steps == 1):
            raise GuardError(f"expected an update of one local step, found {steps!r}; send every step's gradient")
        if steps is not None or self.policy.unproven_step == "accept":
            return None
        hidden = self.client.undetected(mean)
        if hidden <= TOLERANCE:
            return None
        return (
            "an update of several local steps can't be told apart from one step at this noise, which hides "
            f"deviations up to {hidden:.2g} times the gradient; say local_steps=1 where the update is made in one "
            'step, or set unproven_step = "accept" in the policy'
        )

    def _binding(self, assessed: Assessed) -> _Binding:
        """What an assessment of this guard holds for.

        Raises:
            GuardError: it is none of this guard's, or a copy.
        """
        binding = self._assessed.get(assessed)
        if binding is None:
            raise GuardError("the assessment isn't one that this guard made; hand over what assess returned, unchanged")
        return binding

    def _refuse_tampering(self) -> None:
        """Raise what was wrong with the ledger when it was opened.

        Raises:
            TamperingError: something was.
        """
        if self._tampering is not None:
            raise self._tampering

    def _refuse_change(self, snapshot: Snapshot) -> None:
        """Compare what was reviewed with what is there now.

        Raises:
            GuardError: model or loss have changed.
        """
        path = snapshot.difference(self.client.observe())
        if path is not None:
            raise GuardError(f"{path} changed while the review went on; leave model and loss alone until it is done")

    def _issued(self, decision: Decision, snapshot: Snapshot | None) -> Decision:
        """The decision once it is logged, bound to what it is about."""
        logged = self._logged(decision)
        if logged.update is not None and snapshot is not None:
            self._decided[logged] = _Binding(snapshot, logged.update_digest)
        return logged

    def _end(self, started: float) -> float:
        """Of the time, on the monotonic clock."""
        return math.inf if self.policy.budget_seconds is None else started + self.policy.budget_seconds

    def _ids(self, inputs: Tensor, names: Sequence[object] | None) -> list[str]:
        """Hidden ids; the inputs' own content names them where nobody else does."""
        if names is None:
            plain = [content_id(one) for one in inputs]
        else:
            plain = [canonical_id(name) for name in names]
            if len(plain) != len(inputs):
                raise GuardError(f"expected {len(inputs)} ids, one per sample, found {len(plain)}")
        if self.ledger is not None:
            return [self.ledger.hidden(name) for name in plain]
        return [hide(name, self._salt) for name in plain]

    def _failed(self, update: UpdateLike, failure: Exception, snapshot: Snapshot | None) -> Decision:
        """No decision was reached: withheld, unless the policy says otherwise; it has no say about tampering."""
        reason = _failure(failure)
        if self.policy.on_failure == "block" or snapshot is None or isinstance(failure, TamperingError):
            return Decision("block", None, [reason])
        try:
            sent = copy.deepcopy(update)
            return Decision(
                "warn", sent, [f"not reviewed: {reason}"],
                model_digest=snapshot.model_digest, update_digest=digest_of_update(sent),
            )  # fmt: skip
        except Exception as error:  # the update may be anything
            return Decision("block", None, list(dict.fromkeys([reason, _failure(error)])))

    def _logged(self, decision: Decision) -> Decision:
        """The decision once the log has it; blocked where the log can't take it."""
        if self.log is None:
            return decision
        try:
            self.log.append(self._entry(decision))
        except Exception as error:
            reasons = list(dict.fromkeys([_failure(error), *decision.reasons]))
            return replace(decision, action="block", update=None, update_digest="", reasons=reasons)
        return decision

    def _entry(self, decision: Decision) -> dict[str, Any]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "round": decision.round,
            "decision": decision.action,
            "reasons": decision.reasons,
            "warnings": decision.warnings,
            **({"note": decision.note} if decision.note else {}),
            "limits": self.policy.limits,
            "release": self.release,
            "prior": self.prior.info().model_dump(mode="json", exclude_none=True),
            "samples": [_numbers(one) for one in decision.exposures],
            "noise_std": decision.noise_std,
            "dropped": decision.dropped,
            "seconds": round(decision.seconds, 6),
            "products": decision.products,
            "ledger": None if self.ledger is None else self.ledger.position,
            "model_sha256": decision.model_digest,
            "update_sha256": decision.update_digest,
            "versions": {"riskaudit": __version__, "torch": str(torch.__version__)},
        }


@dataclass
class _Upload:
    """See `Guard.upload`."""

    guard: Guard
    batch: HeldBatch
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
            try:
                batch = self.batch.unchanged()
            except GuardError as changed:
                self.decision = self.guard.withhold(str(changed))
            else:
                self.decision = self.guard.review(batch, self.update, ids=self.ids)


def _sanitising_key(update: Update, batch: Batch, model_digest: str, *, noisy: bool) -> str:
    """Digest of what is one update: with noise its bytes, without it the samples, in any order, and the weights."""
    if noisy:
        return digest_of_update(update.tensors)
    samples = sorted(digest_of_update(pair) for pair in zip(batch.inputs, batch.targets, strict=True))
    return hashlib.sha256("".join([model_digest, *samples]).encode()).hexdigest()


def _recorded(
    ledger: Ledger, accounts: dict[str, Account], ids: list[str], outcome: Outcome, digest: str, log: Position | None,
    noise: NoiseRound,
) -> bool:  # fmt: skip
    """Enter what is about to leave; False where the accounts changed meanwhile."""
    after: dict[str, Account] = {}
    found = outcome.found
    for place in outcome.kept:
        if place not in found.information:
            raise GuardError("the ledger can't count samples that were not assessed; raise the budget")
        before = accounts.get(ids[place])
        one = found.account(place, outcome.noise_total, len(outcome.kept), before)
        # Twins under one id are counted once, each with the information of all: the most exposed one's counts.
        if ids[place] not in after or one.revealed > after[ids[place]].revealed:
            after[ids[place]] = one
    before_it = {name: accounts[name] for name in after if name in accounts}
    return ledger.record(before_it, after, digest, log, noise) is not None


def _kept(
    inputs: Tensor, targets: Tensor, names: Sequence[object] | None, binding: _Binding
) -> tuple[Tensor, Tensor, list[object] | None]:
    """The part of a batch that an assessment lets into the update.

    Raises:
        GuardError: nothing may, or the batch has another number of samples.
    """
    places = list(binding.kept)
    if not places:
        raise GuardError("no sample of this batch may go into an update")
    if max(places) >= len(inputs):
        raise GuardError("the batch isn't the one that was assessed; assess it again")
    if names is not None and len(names) != len(inputs):
        raise GuardError(f"expected {len(inputs)} ids, one per sample, found {len(names)}")
    return inputs[places], targets[places], None if names is None else [names[place] for place in places]


def _known(binding: _Binding, batch: Batch, snapshot: Snapshot) -> Assessment | None:
    """What an assessment says of the samples that it lets into the update.

    Raises:
        GuardError: it is of another model or of other samples.
    """
    if binding.found is None:
        return None
    known = binding.found.select(binding.kept)
    same = torch.equal(known.batch.inputs, batch.inputs) and torch.equal(known.batch.targets, batch.targets)
    if binding.snapshot != snapshot or not same:
        raise GuardError("the batch or the model isn't the one that was assessed; assess it again")
    return known


def _after_dropping(outcome: Outcome, reasons: list[str], dropped: int) -> Outcome:
    """The outcome of a review of what an assessment left, told as the sanitising that it was."""
    action = "sanitise" if outcome.action == "allow" else outcome.action
    return replace(outcome, action=action, reasons=[*reasons, *outcome.reasons], dropped=outcome.dropped + dropped)


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


def _is_count(value: object) -> TypeGuard[int]:
    """Whether something is a whole number of at least 0, and no truth value."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def _numbers(one: Exposure) -> dict[str, Any]:
    return {"id": one.id, "revealed": _ends(one.revealed), "rmse": _ends(one.rmse), "total": _ends(one.total_revealed)}


def _ends(found: Range | None) -> list[float] | None:
    if found is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None
    return [found.low, found.high]


def _failure(error: BaseException) -> str:
    return told(error, "the review failed with ")
