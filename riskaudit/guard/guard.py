"""`Guard`: audit, policy, ledger and log around one upload. Whatever goes wrong, nothing leaves."""

from __future__ import annotations

import copy
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard.base_client import BaseClient, LossLike
from riskaudit.guard.batches import check_batch
from riskaudit.guard.client import Client
from riskaudit.guard.decision import FORGETS, Decision, describe, name_error
from riskaudit.guard.identifiers import hidden_ids
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.isolation import isolated
from riskaudit.guard.joint_client import JointClient
from riskaudit.guard.keys import KeyFolder, TamperingError
from riskaudit.guard.ledger import Ledger
from riskaudit.guard.log import AuditLog
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.received import ReceivedModelError, ReceivedModels
from riskaudit.guard.recording import Recording
from riskaudit.guard.review import Draft, Review
from riskaudit.guard.snapshot import Snapshot
from riskaudit.guard.submission import Submission
from riskaudit.guard.unsent import remember_withheld
from riskaudit.guard.update_review import UpdateReview, is_count
from riskaudit.guard.updates import UpdateLike, digest_of_update
from riskaudit.policy import Policy
from riskaudit.priors import IsotropicPrior, Prior, load_prior
from riskaudit.release import Batch, mixes_samples
from riskaudit.release.aggregation import Mean
from riskaudit.release.base import spec_of
from riskaudit.release.training import LocalTraining


class Guard:
    """Reviews every update of one client before it leaves.

    There are two ways in: `review` decides about an update, and `assess` decides before it is made which samples may
    go into it. Integrations `withhold` where there is nothing to review.

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
        if not isinstance(policy, Policy):
            raise SettingsError(f"expected policy to be a riskaudit.Policy, found a {type(policy).__name__}; make one")
        if not policy.limits:
            raise SettingsError("expected a policy with a limit, found none; set max_revealed or min_rmse")
        if not isinstance(release, str):
            raise SettingsError(
                f'expected a release such as "gradient" or "gaussian:0.01", found {type(release).__name__}'
            )
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
        self._spec, self._loss, self._dtype, self._summed = spec_of(release), loss_fn, dtype, reduction == "sum"
        if self._spec.transformation is not None:
            raise SettingsError(
                f"the guard is handed the batches that are trained on, which '{self._spec.transformation}' has "
                "transformed already; leave it out of the release"
            )
        if self._spec.is_joint and self._summed:
            raise SettingsError(f'expected reduction "mean" with the release {release!r}, found "sum"')
        self.client: BaseClient = self._joint() if self._spec.is_joint else self._separate()
        self._salt, self._rounds = secrets.token_bytes(32), 0
        self._memory, self._received = NoiseMemory(self.ledger), ReceivedModels()
        # Noise that a later process could compare with is in the ledger; who has none is told so once.
        self._forgets = ledger is None and (self.client.noise is not None or policy.on_violation == "sanitise")
        # Model and update that each decision is about, and what each assessment holds for, whoever changes the objects.
        self._decided: WeakKeyDictionary[Decision, tuple[Snapshot, str]] = WeakKeyDictionary()
        self._assessed: WeakKeyDictionary[Decision, tuple[Snapshot, Draft]] = WeakKeyDictionary()

    @isolated
    def review(
        self,
        batch: Batch | Sequence[Any],
        update: UpdateLike,
        *,
        ids: Sequence[object] | None = None,
        round: int | None = None,
        assessment: Decision | None = None,
        local_steps: int | None = None,
    ) -> Decision:
        """Decide about an update before it leaves.

        Args:
            batch: inputs [B, ...] in data units and targets [B, ...] that the update was computed from.
            update: tensors (or arrays) like the trainable parameters, in their order or by name.
            ids: names of the samples, the same in every round, for a ledger; hashes of the inputs where not given.
            round: number for the log; counted where not given.
            assessment: of `assess` for the same batch and weights, where the update holds only the samples in its
                ``kept``.
            local_steps: how many local steps the update is made of; the guard's own where not given.

        Returns:
            The decision. Nothing is raised but for interrupts: whatever goes wrong withholds the update.
        """
        steps = self.local_steps if local_steps is None else local_steps
        return self.decide(lambda: Submission(self.present_client(), batch, update, ids), round, assessment, steps)

    @isolated
    def decide(
        self,
        submit: Callable[[], Submission],
        round: int | None = None,
        assessment: Decision | None = None,
        local_steps: int | None = None,
    ) -> Decision:
        """`review` of what a function hands in; for recordings, whose own failures withhold as well."""
        started = time.monotonic()
        self._rounds += 1
        number = round if is_count(round) else self._rounds
        submission: Submission | None = None
        snapshot: Snapshot | None = None
        review: UpdateReview | None = None
        live: Snapshot | None = None
        try:
            if round is not None and not is_count(round):
                raise GuardError(f"expected the round as a whole number of at least 0, found {round!r}")
            submission = submit()
            client = submission.client
            snapshot = client.refresh()
            self._received.require(self.policy, client, snapshot, submission.batch)
            live = client.observe() if client.is_recorded else snapshot
            assessed = None if assessment is None else self._assessed.get(assessment)
            if assessment is not None and assessed is None:
                raise GuardError(
                    "the assessment isn't one that this guard made; hand over what assess returned, unchanged"
                )
            review = UpdateReview(self._review(client, started), snapshot, submission, local_steps, assessed)
            decision = review.decide()
            live.refuse_change(client.observe())
        except Exception as error:  # the model and the loss are third-party code
            if submission is not None:
                submission.client.forget()  # what failed may have left anything in its copies
            decision = self._failed(submission, error, snapshot)
        if decision.update is not None and submission is not None:
            decision = submission.finished(decision)
        if decision.update is not None and self._forgets:
            self._forgets = False
            decision = replace(decision, note=FORGETS)
        seconds, warnings = time.monotonic() - started, [] if review is None else review.warnings
        decision = self._logged(replace(decision, round=number, seconds=seconds, warnings=warnings))
        if decision.update is not None and live is not None:
            self._decided[decision] = live, decision.update_digest
        return decision

    def record(self, optimizer: torch.optim.Optimizer) -> Recording:
        """Begin to record a round of local training, which the recording reviews when it is over.

        Args:
            optimizer: SGD or Adam of torch, new, of exactly the model's trainable parameters. ``release`` of this
                guard then says what is done to the difference of the weights: steps, and noise on its entries. Where
                it describes a training as well, the recorded one is held against that.

        Raises:
            SettingsError: an optimizer of other parameters, or one that remembers earlier steps.
            GuardError: settings of the optimizer that nobody can repeat, or other than the release says; a ledger or a
                log that can't be used, which is withheld and logged as far as it can be.
            RiskauditError: a model that can't be copied or compared, or a release that can't follow local training.
        """
        if self._spec.mean is not None:
            raise SettingsError(f"expected a release of local training, found '{self._spec}'; leave the mean out")
        client = self._joint(recorded=True)
        self._require_records(client)
        return Recording(self, client, optimizer, self._spec.training)

    @isolated
    def assess(self, batch: Batch | Sequence[Any], *, ids: Sequence[object] | None = None) -> Decision:
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
        bound: tuple[Snapshot, Draft] | None = None
        try:
            client = self.present_client()
            bound = snapshot, draft = self._assess(batch, ids, self._review(client, started))
            kept = [] if draft.decision.action == "block" else list(draft.indices)
            products, reasons = draft.information.products, list(draft.decision.reasons)
            decision = replace(draft.decision, kept=kept, reasons=reasons, warnings=[], products=products)
            decision = replace(decision, model_digest=snapshot.model_digest)
            snapshot.refuse_change(self.client.observe())
        except Exception as error:  # the model and the loss are third-party code
            self.client.forget()  # what failed may have left anything in its copies
            products = 0 if bound is None else bound[1].information.products
            decision = Decision("block", None, [describe(error)], products=products)
        if decision.action == "block":
            self._rounds += 1
            decision = self._logged(replace(decision, round=self._rounds, seconds=time.monotonic() - started))
        if bound is not None:
            self._assessed[decision] = bound
        return decision

    @isolated
    def prepare(self, batch: Batch | Sequence[Any]) -> None:
        """Look at the model's layers before the first round, which would pay for it otherwise.

        Args:
            batch: a few samples of the shape and dtype that rounds have.

        Raises:
            RiskauditError: the model or the batch can't be reviewed; every round would be withheld.
        """
        client = self.present_client()
        client.refresh()
        client.prepare(client.batch(*check_batch(batch)))

    @isolated
    def inspect(self, inputs: Tensor, received: Mapping[str, Any] | None = None) -> Decision:
        """Decide whether anything may be trained on a received model; reviews do so themselves if the policy says so.

        Args:
            inputs: [N, ...] in data units, of the client, 32 or more for all signs.
            received: entries of the state dict by name; what the model holds now where not given.

        Returns:
            "allow", or "block" with one sentence. Nothing is raised but for interrupts: what fails blocks.
        """
        decision = self._received.decide(self.model, self.client.live_loss, inputs, received)
        return decision if decision.action == "allow" else self._logged(decision)

    def withhold(self, reason: str | BaseException) -> Decision:
        """Withhold an upload of which there is nothing to review, and log it.

        Args:
            reason: a sentence without any private input, or the exception that left no update: only its kind and
                where it was raised are kept.
        """
        if isinstance(reason, BaseException):
            reason = f"the update was not made: {name_error(reason)}"
        return self._logged(Decision("block", None, [reason]))

    @isolated
    def confirm(self, decision: Decision, update: UpdateLike | None = None) -> Decision:
        """The decision again, right before sending: blocked if model, loss or update aren't those that were reviewed.

        Args:
            decision: of `review` of this guard, itself: a copy of it is no decision.
            update: what is about to be sent, where it isn't ``decision.update`` itself.
        """
        given: object = decision
        if not isinstance(given, Decision):
            found = type(given).__name__
            return Decision("block", None, [f"expected the decision that review returned, found {found}; confirm that"])
        if decision.update is None:
            return decision
        try:
            snapshot, update_digest = self._decided.get(decision, (None, ""))
            if snapshot is None:
                reason = "the decision isn't one that this guard made; confirm what review returned, unchanged"
            elif (path := snapshot.difference(self.client.observe())) is not None:
                reason = f"the model isn't the one that was reviewed ({path} has changed); review the update again"
            elif digest_of_update(decision.update if update is None else update) != update_digest:
                reason = "the update isn't the one that was reviewed; send decision.update as it is"
            else:
                return decision
        except Exception as error:  # what is compared may be anything by now
            reason = describe(error)
        remember_withheld(self.model, decision)
        return self._logged(decision.withheld([reason]))

    def close(self) -> None:
        """Let go of the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    def present_client(self) -> BaseClient:
        """Of a batch at the live model: one whose samples leave together where a layer mixes them."""
        if self.client.is_joint or not mixes_samples(self.model):
            return self.client
        if self._summed:
            raise GuardError(
                "batch norm with the statistics of the batch leaves no sample a gradient of its own to sum; review the "
                'mean (reduction="mean")'
            )
        return self._joint()

    def _separate(self) -> Client:
        any_layer = self.policy.unknown_layers == "differentiate"
        return Client(self.model, self._loss, self._spec, self._dtype, self._summed, any_layer)

    def _joint(self, recorded: bool = False) -> JointClient:
        """A client whose samples leave together: of a round that is recorded, or as the release says."""
        spec = self._spec
        if recorded:
            spec = replace(spec, training=LocalTraining(epochs=1, batch=None, lr=1.0))
        elif spec.training is None and spec.mean is None:
            spec = replace(spec, steps=(*spec.steps, Mean(None)))
        any_layer = self.policy.unknown_layers == "differentiate"
        return JointClient(self.model, self._loss, spec, self._dtype, any_layer)

    def _review(self, client: BaseClient, started: float) -> Review:
        """What to review with, as the guard's attributes are by now."""
        if self._tampering is not None:
            raise self._tampering
        end = math.inf if self.policy.budget_seconds is None else started + self.policy.budget_seconds
        salt = self._salt if self.ledger is None else self.ledger.salt
        return Review(client, self.prior, self.policy, self.ledger, self.log, self._memory, salt, end)

    def _require_records(self, client: BaseClient) -> None:
        """Refuse a ledger and a log that would withhold a round once it is over.

        Raises:
            GuardError: why they would.
        """
        try:
            if self.log is not None:
                self.log.require()
            try:
                self._review(client, time.monotonic()).accounts([])
            except GuardError as error:
                # A policy that lets pass what can't be reviewed has no say about tampering.
                if self.policy.on_failure == "block" or isinstance(error, TamperingError):
                    raise
        except GuardError as error:
            self.withhold(str(error))
            raise

    def _assess(
        self, given: Batch | Sequence[Any], names: Sequence[object] | None, review: Review
    ) -> tuple[Snapshot, Draft]:
        inputs, targets = check_batch(given)
        client = review.client
        snapshot, ids = client.refresh(), hidden_ids(inputs, names, review.salt)
        self._received.require(self.policy, client, snapshot, given)
        if client.is_joint:
            raise GuardError("samples that leave together can't be chosen beforehand; review the update instead")
        empty = BatchInformation.empty(client.batch(inputs, targets), inputs, ids, client.summed)
        empty.accounts, _ = review.accounts(ids)
        return snapshot, review.decide(empty)

    def _failed(self, submission: Submission | None, failure: Exception, snapshot: Snapshot | None) -> Decision:
        """No decision was reached: withheld, unless the policy says otherwise; it has no say about tampering."""
        reason = describe(failure)
        tampered = isinstance(failure, TamperingError | ReceivedModelError)
        if self.policy.on_failure == "block" or submission is None or snapshot is None or tampered:
            return Decision("block", None, [reason])
        try:
            sent = copy.deepcopy(submission.update)
            digest = digest_of_update(sent)
            reasons = [f"not reviewed: {reason}"]
            return Decision("warn", sent, reasons, model_digest=snapshot.model_digest, update_digest=digest)
        except Exception as error:  # the update may be anything
            return Decision("block", None, list(dict.fromkeys([reason, describe(error)])))

    def _logged(self, decision: Decision) -> Decision:
        """The decision once the log has it; blocked where the log can't take it."""
        if self.log is None:
            return decision
        try:
            settings: dict[str, object] = {
                "limits": self.policy.limits,
                "release": self.release,
                "prior": self.prior.info().model_dump(mode="json", exclude_none=True),
                "ledger": None if self.ledger is None else self.ledger.position,
            }
            self.log.append(decision.log_entry(settings))
        except Exception as error:
            return decision.withheld(list(dict.fromkeys([describe(error), *decision.reasons])))
        return decision
