"""The review of one update: from what was handed in to what may be sent, once the ledger has it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, TypeGuard

from torch import Tensor

from riskaudit.audit.targets import target_notes
from riskaudit.errors import GuardError
from riskaudit.guard.batches import check_batch
from riskaudit.guard.client import TOLERANCE
from riskaudit.guard.decision import Decision
from riskaudit.guard.identifiers import sample_digest
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.ledger import Account
from riskaudit.guard.ledger.noise import SECOND_DRAW, NoiseRound, RepetitionError
from riskaudit.guard.log import Position
from riskaudit.guard.noise.law import observed_noise
from riskaudit.guard.noise.order import Extremes
from riskaudit.guard.noise.patterns import noise_pattern
from riskaudit.guard.review import Draft, Review, ReviewContext
from riskaudit.guard.snapshot import Snapshot
from riskaudit.guard.updates import Update, UpdateLike, digest_of_update
from riskaudit.release import Batch

# How often a review starts over because somebody else's round entered the ledger meanwhile.
ATTEMPTS = 3


@dataclass(frozen=True, eq=False)
class Submission:
    """An update and its batch, seen to belong together.

    Attributes:
        batch: the samples that the update holds.
        update: as it was handed in.
        vector: the same as a vector [P], float64.
        mean: what it should be before noise [P], float64.
        noise: normal scores [P] of its noise, and the largest of them; None where it has none.
        key: digest of what is one update, however often it is handed in.
        unproven: why it may be of several local steps; None where it is of one.
    """

    batch: Batch
    update: Update
    vector: Tensor
    mean: Tensor
    noise: tuple[Tensor, list[Extremes]] | None
    key: str
    unproven: str | None


@dataclass(eq=False)
class UpdateReview:
    """One review.

    Attributes:
        context: what to review with.
        snapshot: of the model and the loss that are reviewed.
        end: when to stop, on the monotonic clock.
        local_steps: of which the update is said to be made; None where nobody says.
        warnings: sentences for the decision that change no action.
    """

    context: ReviewContext
    snapshot: Snapshot
    end: float
    local_steps: int | None
    warnings: list[str] = field(default_factory=list)

    def decide(
        self,
        given: Batch | Sequence[Any],
        update: UpdateLike,
        names: Sequence[object] | None,
        assessed: tuple[Snapshot, Draft] | None = None,
    ) -> Decision:
        """What may be sent.

        Args:
            given: the batch.
            update: made of it, or of the part that an assessment let into it.
            names: of all samples of the batch.
            assessed: model and draft of the assessment, where there was one.

        Raises:
            GuardError: they don't belong together, or can't be reviewed.
        """
        inputs, targets = check_batch(given)
        total = len(inputs)
        if assessed is not None:
            inputs, targets, names = _part(assessed[1], inputs, targets, names)
        submission = self._submission(inputs, targets, update)
        if submission.noise is not None:
            scores, extremes = submission.noise
            pattern = noise_pattern(scores.numpy(), extremes, self.context.client.shapes)
            if pattern is not None:
                return self._blocked(pattern)
        batch = submission.batch
        self.warnings += [*self.context.client.loss_warnings(batch), *target_notes(batch.targets)]
        again = self._sanitised_before(submission.key)
        if again is not None and submission.unproven is None:
            return replace(again, model_digest=self.snapshot.model_digest)
        ids = self.context.hidden_ids(inputs, names)
        known = None if assessed is None else self._information_of(assessed, batch)
        empty = BatchInformation.empty(batch, inputs, ids, self.context.client.summed)
        for attempt in range(ATTEMPTS):
            position = self.context.position()
            empty.accounts = self.context.accounts(ids, position)
            # What was known before somebody else's round entered the ledger isn't in the ledger's directions.
            information = None if attempt or known is None else known.under(empty)
            draft = self._draft(submission, empty, information)
            if assessed is not None and assessed[1].decision.action == "sanitise":
                draft = _after_dropping(draft, assessed[1].decision.reasons, total - len(inputs))
            decision = self._entered(submission, draft, position)
            if decision is not None:
                return decision
        raise GuardError("the ledger changed again and again during the review; let fewer clients share it")

    def _submission(self, inputs: Tensor, targets: Tensor, given: UpdateLike) -> Submission:
        """The update and its batch, compared with each other.

        Raises:
            GuardError: the update isn't the release of this batch.
        """
        client, memory = self.context.client, self.context.memory
        update = Update.of(given, client.shapes)
        batch, vector = client.batch(inputs, targets), update.vector()
        mean = client.mean(batch)
        mismatch = client.mismatch(vector, mean)
        if mismatch is not None:
            raise GuardError(mismatch)
        if client.noise is not None:
            key = digest_of_update(update.tensors)
            noise = observed_noise(client.noise, vector, mean, client.shapes.values())
        else:
            key = _content_key(batch, self.snapshot.model_digest)
            key, noise = memory.clean.key_of(mean, self.snapshot.model_digest, key), None
        return Submission(batch, update, vector, mean, noise, key, self._unproven_step(mean))

    def _unproven_step(self, mean: Tensor) -> str | None:
        """Why an update may be of several local steps, each of which depends on the samples through the others.

        Returns:
            The reason; None where it is one step, by the numbers or by the caller's or the policy's word.

        Raises:
            GuardError: the caller says that it is of several.
        """
        steps = self.local_steps
        # 1.0 and True equal 1, but whoever says them needn't have meant a number of steps.
        if steps is not None and not (is_count(steps) and steps == 1):
            raise GuardError(f"expected an update of one local step, found {steps!r}; send every step's gradient")
        if steps is not None or self.context.policy.unproven_step == "accept":
            return None
        hidden = self.context.client.undetected(mean)
        if hidden <= TOLERANCE:
            return None
        return (
            "an update of several local steps can't be told apart from one step at this noise, which hides "
            f"deviations up to {hidden:.2g} times the gradient; say local_steps=1 where the update is made in one "
            'step, or set unproven_step = "accept" in the policy'
        )

    def _information_of(self, assessed: tuple[Snapshot, Draft], batch: Batch) -> BatchInformation:
        """What is known of the samples that an assessment lets into the update.

        Raises:
            GuardError: it is of another model or of other samples.
        """
        snapshot, draft = assessed
        information = draft.information.select(draft.indices)
        if snapshot != self.snapshot or not information.is_of(batch):
            raise GuardError("the batch or the model isn't the one that was assessed; assess it again")
        return information

    def _draft(self, submission: Submission, empty: BatchInformation, information: BatchInformation | None) -> Draft:
        """What the policy says of the numbers; of an unproven step they are worked out, and it is withheld."""
        context, unproven = self.context, submission.unproven
        if unproven is not None:
            context = replace(context, policy=replace(context.policy, on_violation="block"))
        review = Review(context, empty, self.end, information)
        draft = review.decide(submission.vector, submission.mean)
        self.warnings += [text for text in review.warnings if text not in self.warnings]
        if unproven is None:
            return draft
        return draft.blocked([unproven, *([] if draft.decision.action == "allow" else draft.decision.reasons)])

    def _entered(self, submission: Submission, draft: Draft, position: Position | None) -> Decision | None:
        """The decision once ledger and memory have what is about to leave; None where the accounts have changed."""
        model_digest, memory = self.snapshot.model_digest, self.context.memory
        if draft.vector is None:
            return draft.final(None, model_digest)
        try:
            unchanged = draft.vector is submission.vector
            sent = submission.update if unchanged else submission.update.like(draft.vector, draft.noise_std)
        except GuardError as error:  # a violation was seen already, so nothing may let this pass any more
            return draft.blocked([*draft.decision.reasons, f"sanitising failed: {error}"]).final(None, model_digest)
        update = sent.handed_back()
        digest = digest_of_update(update)
        noise = self._noise_of(submission, draft)
        try:
            repeated = memory.refuse_or_remember(noise)
            if repeated is None and self.context.ledger is not None:
                after = _accounts_after(draft)
                accounts = draft.information.accounts or {}
                before = {name: account for name, account in accounts.items() if name in after}
                if self.context.ledger.record(before, after, digest, position, noise) is None:
                    return None
        except RepetitionError as error:
            repeated = str(error)
        if repeated is not None:
            return replace(self._blocked(repeated), exposures=draft.decision.exposures)
        decision = draft.final(update, model_digest, digest)
        if not decision.noise_std:
            return decision
        if submission.noise is None:
            memory.clean.remember(submission.mean, model_digest, submission.key)
        return memory.remember_result(submission.key, decision)

    def _blocked(self, reason: str) -> Decision:
        return Decision("block", None, [reason], model_digest=self.snapshot.model_digest)

    def _sanitised_before(self, key: str) -> Decision | None:
        """The first result for an update that was sanitised before: a second draw would average the first away."""
        was_sanitised, first = self.context.memory.sanitised(key)
        if not was_sanitised:
            return None
        if first is None or self.context.policy.judge(first.exposures).reasons:
            return Decision("block", None, [SECOND_DRAW])
        return replace(first, reasons=[*first.reasons, "it was sanitised before: the same result again"])

    def _noise_of(self, submission: Submission, draft: Draft) -> NoiseRound:
        """What is to be remembered of the client's noise, and of what sanitising made of it."""
        noises, extremes = list[Tensor](), None
        if submission.noise is not None and draft.vector is not None:
            scores, extremes = submission.noise
            noises = [scores, *([draft.vector - submission.mean] if draft.decision.noise_std else [])]
        sizes = [shape.numel() for shape in self.context.client.shapes.values()]
        sanitised = bool(draft.decision.noise_std)
        return self.context.memory.round_of(noises, sizes, submission.key, sanitised=sanitised, extremes=extremes)


def is_count(value: object) -> TypeGuard[int]:
    """Whether something is a whole number of at least 0, and no truth value."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def _part(
    draft: Draft, inputs: Tensor, targets: Tensor, names: Sequence[object] | None
) -> tuple[Tensor, Tensor, Sequence[object] | None]:
    """The part of a batch that an assessment lets into the update.

    Raises:
        GuardError: nothing may, or the batch has another number of samples.
    """
    indices = draft.indices
    if draft.decision.action == "block" or not indices:
        raise GuardError("no sample of this batch may go into an update")
    if max(indices) >= len(inputs):
        raise GuardError("the batch isn't the one that was assessed; assess it again")
    if names is not None and len(names) != len(inputs):
        raise GuardError(f"expected {len(inputs)} ids, one per sample, found {len(names)}")
    return inputs[indices], targets[indices], None if names is None else [names[index] for index in indices]


def _content_key(batch: Batch, model_digest: str) -> str:
    """Digest of what is one update without noise: the samples, in any order and any dtype, and the weights."""
    samples = sorted(sample_digest(*pair) for pair in zip(batch.inputs, batch.targets, strict=True))
    return hashlib.sha256(b"".join([model_digest.encode(), *samples])).hexdigest()


def _accounts_after(draft: Draft) -> dict[str, Account]:
    """The accounts with what is about to leave.

    Raises:
        GuardError: a sample was not assessed.
    """
    after: dict[str, Account] = {}
    for index in draft.indices:
        identifier = draft.information.samples[index].id
        account = draft.information.account(index, draft.noise_std, len(draft.indices))
        # Twins under one id are counted once, each with the information of all: the most exposed one's counts.
        if identifier not in after or account.revealed > after[identifier].revealed:
            after[identifier] = account
    return after


def _after_dropping(draft: Draft, reasons: Sequence[str], dropped: int) -> Draft:
    """The draft of a review of what an assessment left, told as the sanitising that it was."""
    decision = draft.decision
    action, dropped = "sanitise" if decision.action == "allow" else decision.action, decision.dropped + dropped
    decision = replace(decision, action=action, reasons=[*reasons, *decision.reasons], dropped=dropped)
    return replace(draft, decision=decision)
