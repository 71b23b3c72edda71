"""The review of one update: from what was handed in to what may be sent, once the ledger has it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TypeGuard

import torch
from torch import Tensor

from riskaudit.audit.targets import target_notes
from riskaudit.errors import GuardError
from riskaudit.formatting import count
from riskaudit.guard.attestation.leaving import Leaving, LeavingAttestation, attest_leaving
from riskaudit.guard.base_client import TOLERANCE
from riskaudit.guard.batches import check_batch
from riskaudit.guard.decision import Decision
from riskaudit.guard.identifiers import hidden_ids, sample_digest
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.ledger import Account
from riskaudit.guard.ledger.noise import SECOND_DRAW, RepetitionError
from riskaudit.guard.log import Line
from riskaudit.guard.noise.law import observed_noise
from riskaudit.guard.noise.order import Extremes
from riskaudit.guard.noise.patterns import noise_pattern
from riskaudit.guard.review import Draft, Review
from riskaudit.guard.snapshot import Snapshot
from riskaudit.guard.submission import Submission
from riskaudit.guard.updates import copy_update, digest_of_update, rebuilt, vector_of
from riskaudit.release import Batch

# How often a review starts over because somebody else's round entered the ledger meanwhile.
ATTEMPTS = 3


class UpdateReview:
    """The review of an update and its batch, which are seen to belong together.

    Args:
        review: what to review with.
        snapshot: of the model and the loss that are reviewed.
        submission: the update, and what it was made of: a batch, or the part that an assessment let into it.
        local_steps: of which the update is said to be made; None where nobody says.
        assessed: model and draft of the assessment, where there was one.

    Attributes:
        warnings: sentences for the decision that change no action.

    Raises:
        GuardError: the update isn't the release of this batch in one step.
    """

    def __init__(
        self,
        review: Review,
        snapshot: Snapshot,
        submission: Submission,
        local_steps: int | None,
        assessed: tuple[Snapshot, Draft] | None,
    ) -> None:
        client, model_digest = review.client, snapshot.model_digest
        self._review, self._snapshot, self._assessed = review, snapshot, assessed
        inputs, targets = check_batch(submission.batch)
        names, update = submission.names, submission.update
        self._num_left_out = len(inputs)
        if assessed is not None:
            inputs, targets, names = _part(assessed[1], inputs, targets, names)
        self._inputs, self._names, self.warnings = inputs, names, list[str]()
        self._num_left_out -= len(inputs)
        self._update, self._is_named = copy_update(update, client.shapes), isinstance(update, Mapping)
        # The samples where the release works, the update [P], and what it should be before noise [P], float64.
        self._batch, self._vector = client.batch(inputs, targets), vector_of(self._update.values())
        self._mean = client.mean(self._batch)
        mismatch = client.mismatch(self._vector, self._mean)
        if mismatch is not None:
            raise GuardError(mismatch)
        # Normal scores [P] of its noise with the largest of them, and a digest of what is one update, however often it
        # is handed in.
        self._noise: tuple[Tensor, list[Extremes]] | None = None
        if client.noise is not None:
            self._key = digest_of_update(self._update)
            self._noise = observed_noise(client.noise, self._vector, self._mean, client.shapes.values())
        else:
            self._key = review.memory.key_of_similar(self._mean, model_digest, _content_key(self._batch, model_digest))
        self._unproven = self._unproven_step(local_steps) or self._unproven_release(submission)

    def decide(self) -> Decision:
        """What may be sent.

        Raises:
            GuardError: it can't be reviewed.
        """
        review, client, model_digest = self._review, self._review.client, self._snapshot.model_digest
        if self._noise is not None:
            pattern = noise_pattern(self._noise[0].numpy(), self._noise[1], client.shapes)
            if pattern is not None:
                return Decision("block", None, [pattern], model_digest=model_digest)
        self.warnings += [*client.loss_warnings(self._batch), *target_notes(self._batch.targets)]
        if client.spec.training is not None:
            self.warnings += client.spec.training.size_notes(len(self._batch))
        earlier = self._sanitised_before()
        if earlier is not None and self._unproven is None:
            return replace(earlier, model_digest=model_digest)
        ids = hidden_ids(self._inputs, self._names, review.salt)
        information = self._assessed_information()
        empty = BatchInformation.empty(self._batch, self._inputs, ids, client.summed)
        for attempt in range(ATTEMPTS):
            empty.accounts, last_line = review.accounts(ids)
            # What was known before somebody else's round entered the ledger isn't in the ledger's directions.
            assessed = None if attempt or information is None else information.under(empty)
            draft = self._draft(empty, assessed)
            decision = replace(draft.decision, products=draft.information.products, model_digest=model_digest)
            if draft.vector is None:
                return decision
            entered = self._entered(replace(draft, decision=decision), draft.vector, last_line)
            if entered is not None:
                return entered
        raise GuardError("the ledger changed again and again during the review; let fewer clients share it")

    def _unproven_step(self, steps: int | None) -> str | None:
        """Why an update may be of several local steps, each of which depends on the samples through the others.

        None where it is one step, by the numbers or by the caller's or the policy's word.
        """
        if self._review.client.spec.training is not None:
            # Whoever describes the training, or had it recorded, says how many steps it has.
            return None
        # 1.0 and True equal 1, but whoever says them needn't have meant a number of steps.
        if steps is not None and not (is_count(steps) and steps == 1):
            raise GuardError(f"expected an update of one local step, found {steps!r}; send every step's gradient")
        if steps is not None or self._review.policy.unproven_step == "accept":
            return None
        hidden = self._review.client.undetected(self._mean)
        if hidden <= TOLERANCE:
            return None
        return (
            "an update of several local steps can't be told apart from one step at this noise, which hides "
            f"deviations up to {hidden:.2g} times the gradient; say local_steps=1 where the update is made in one "
            'step, or set unproven_step = "accept" in the policy'
        )

    def _unproven_release(self, submission: Submission) -> str | None:
        """Why what leaves may never have been clipped, pruned or masked as the release says; None where it was.

        Noise hides it, and what was left out would tell far more than what is reviewed.
        """
        if submission.steps_made or self._review.policy.unproven_step == "accept":
            return None
        steps = ",".join(map(str, self._review.client.spec.client_steps))
        return (
            f"noise hides whether '{steps}' was applied to what leaves; let add_noise() of the recording apply both "
            'and send what it makes, or set unproven_step = "accept" in the policy if something else surely does it'
        )

    def _sanitised_before(self) -> Decision | None:
        """The first result for an update that was sanitised before: a second draw would average the first away."""
        was_sanitised, first = self._review.memory.sanitised(self._key)
        if not was_sanitised:
            return None
        if first is None or self._review.policy.judge(first.exposures).reasons:
            return Decision("block", None, [SECOND_DRAW])
        return replace(first, reasons=[*first.reasons, "it was sanitised before: the same result again"])

    def _assessed_information(self) -> BatchInformation | None:
        """What is known of the samples that an assessment lets into the update."""
        if self._assessed is None:
            return None
        snapshot, draft = self._assessed
        information = draft.information.select(draft.indices)
        pairs = (information.batch.inputs, self._batch.inputs), (information.batch.targets, self._batch.targets)
        if snapshot != self._snapshot or not all(torch.equal(*pair) for pair in pairs):
            raise GuardError("the batch or the model isn't the one that was assessed; assess it again")
        return information

    def _draft(self, empty: BatchInformation, assessed: BatchInformation | None) -> Draft:
        """What the policy says of the numbers; of an unproven step they are worked out, and it is withheld."""
        review = self._review
        if self._unproven is not None:
            review = replace(review, policy=replace(review.policy, on_violation="block"))
        draft = review.decide(empty, self._vector, self._mean, assessed)
        self.warnings += [text for text in draft.decision.warnings if text not in self.warnings]
        if self._unproven is not None:
            draft = draft.blocked(
                [self._unproven, *([] if draft.decision.action == "allow" else draft.decision.reasons)]
            )
        if self._assessed is None or self._assessed[1].decision.action != "sanitise":
            return draft
        # What an assessment left is told as the sanitising that it was.
        decision = draft.decision
        action = "sanitise" if decision.action == "allow" else decision.action
        reasons = [*self._assessed[1].decision.reasons, *decision.reasons]
        return draft.saying(action=action, reasons=reasons, dropped=decision.dropped + self._num_left_out)

    def _entered(self, draft: Draft, vector: Tensor, last_line: Line | None) -> Decision | None:
        """The decision once ledger and memory have what is about to leave; None where the accounts have changed."""
        review, decision, memory = self._review, draft.decision, self._review.memory
        added, model_digest = bool(decision.noise_std), self._snapshot.model_digest
        try:
            sent = self._update if vector is self._vector else rebuilt(vector, self._update, draft.noise_std)
        except GuardError as error:  # a violation was seen already, so nothing may let this pass any more
            return draft.blocked([*decision.reasons, f"sanitising failed: {error}"]).decision
        attested = self._attested(draft, sent)
        decision = replace(decision, attestation=attested.entry())
        if attested.reasons:
            return replace(decision, action="block", reasons=[*decision.reasons, *attested.reasons])
        digest, traces = digest_of_update(sent), []
        if self._noise is not None:
            noises = [self._noise[0], *([vector - self._mean] if added else [])]
            sizes = [shape.numel() for shape in review.client.shapes.values()]
            traces = memory.traces(noises, sizes, self._key, self._noise[1])
        try:
            repeated = memory.refuse_or_remember(traces)
            if repeated is None and review.ledger is not None:
                after, accounts = _accounts_after(draft), draft.information.accounts or {}
                before = {name: account for name, account in accounts.items() if name in after}
                sanitised = memory.keyed(self._key) if added else None
                if review.ledger.record(before, after, digest, last_line, traces, sanitised) is None:
                    return None
        except RepetitionError as error:
            repeated = str(error)
        if repeated is not None:
            return Decision("block", None, [repeated], decision.exposures, model_digest=model_digest)
        update = dict(sent) if self._is_named else list(sent.values())
        decision = replace(decision, update=update, update_digest=digest)
        if added and self._noise is None:
            memory.remember_clean(self._mean, model_digest, self._key)
        return memory.remember_result(self._key, decision) if added else decision

    def _attested(self, draft: Draft, sent: Mapping[str, Tensor]) -> LeavingAttestation:
        """What is about to leave, held to the release and to what the draft says was done to it."""
        review, decision = self._review, draft.decision
        assert draft.clean is not None
        leaving = Leaving(
            tensors=sent,
            given={name: tensor.dtype for name, tensor in self._update.items()},
            clean=draft.clean,
            drawn=None if self._noise is None else self._vector - self._mean,
            added=decision.noise_std,
            clip_norm=None if draft.vector is self._vector else review.policy.clip_norm,
            num_samples=len(draft.indices),
        )
        return attest_leaving(leaving, review.client, review.policy)


def is_count(value: object) -> TypeGuard[int]:
    """Whether something is a whole number of at least 0, and no truth value."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def _part(
    draft: Draft, inputs: Tensor, targets: Tensor, names: Sequence[object] | None
) -> tuple[Tensor, Tensor, Sequence[object] | None]:
    """The part of a batch that an assessment lets into the update."""
    indices = draft.indices
    if draft.decision.action == "block" or not indices:
        raise GuardError("no sample of this batch may go into an update")
    if max(indices) >= len(inputs):
        raise GuardError("the batch isn't the one that was assessed; assess it again")
    if names is not None and len(names) != len(inputs):
        raise GuardError(f"expected {count(len(inputs), 'id')}, one per sample, found {len(names)}")
    return inputs[indices], targets[indices], None if names is None else [names[index] for index in indices]


def _content_key(batch: Batch, model_digest: str) -> str:
    """Digest of what is one update without noise: the samples, in any order and any dtype, and the weights."""
    samples = sorted(sample_digest(*pair) for pair in batch.pairs())
    return hashlib.sha256(b"".join([model_digest.encode(), *samples])).hexdigest()


def _accounts_after(draft: Draft) -> dict[str, Account]:
    """The accounts with what is about to leave."""
    after: dict[str, Account] = {}
    for index in draft.indices:
        identifier = draft.information.samples[index].id
        account = draft.information.account(index, draft.noise_std, len(draft.indices))
        # Twins under one id are counted once, each with the information of all: the most exposed one's counts.
        if identifier not in after or account.revealed > after[identifier].revealed:
            after[identifier] = account
    return after
