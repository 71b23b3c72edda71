"""The review of one update: from what was handed in to what may be sent, once the ledger has it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, TypeGuard

from torch import Tensor

from riskaudit.audit.targets import target_notes
from riskaudit.errors import GuardError
from riskaudit.guard.assessment import Assessment
from riskaudit.guard.batches import check_batch, classes_of
from riskaudit.guard.binding import Binding, current
from riskaudit.guard.client import TOLERANCE, Client
from riskaudit.guard.contents import sample_digest
from riskaudit.guard.decision import Assessed, Decision
from riskaudit.guard.duplicates import duplicate_labels
from riskaudit.guard.ledger import Account, Ledger
from riskaudit.guard.ledger.noise import SECOND_DRAW, NoiseRound, RepetitionError
from riskaudit.guard.log import AuditLog, Position
from riskaudit.guard.noise.law import observed_noise
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.noise.order import Extremes
from riskaudit.guard.noise.patterns import noise_pattern
from riskaudit.guard.review import Outcome, Review
from riskaudit.guard.snapshot import Snapshot
from riskaudit.guard.updates import Update, UpdateLike, digest_of_update
from riskaudit.policy import Policy
from riskaudit.priors import Prior
from riskaudit.release import Batch

# How often a review starts over because somebody else's round entered the ledger meanwhile.
ATTEMPTS = 3


@dataclass(frozen=True, eq=False)
class Setup:
    """What a guard reviews with.

    Attributes:
        client: its release.
        exact: the same in float64, made when it is needed.
        prior: what an attacker is taken to know.
        policy: limits and what to do.
        ledger: None without one.
        log: None without one.
        memory: of noise and of sanitised updates.
        hidden_ids: names of samples, or their own content, as hidden ids.
    """

    client: Client
    exact: Callable[[], Client]
    prior: Prior
    policy: Policy
    ledger: Ledger | None
    log: AuditLog | None
    memory: NoiseMemory
    hidden_ids: Callable[[Tensor, Sequence[object] | None], list[str]]

    def position(self) -> Position | None:
        """Where the log stands."""
        return None if self.log is None else self.log.position()

    def accounts(self, ids: Sequence[str], position: Position | None) -> dict[str, Account] | None:
        """What the ledger has of these samples, seen to be as it was written."""
        return None if self.ledger is None else self.ledger.accounts(ids, position)


@dataclass(frozen=True, eq=False)
class Handed:
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
        setup: what to review with.
        snapshot: of the model and the loss that are reviewed.
        end: of the time, on the monotonic clock.
        local_steps: of which the update is said to be made; None where nobody says.
        warnings: sentences for the decision that change no action.
    """

    setup: Setup
    snapshot: Snapshot
    end: float
    local_steps: int | None
    warnings: list[str] = field(default_factory=list)

    def decide(
        self, given: Batch | Sequence[Any], update: UpdateLike, names: Sequence[object] | None,
        assessed: Assessed | None, binding: Binding | None,
    ) -> Decision:  # fmt: skip
        """What may be sent.

        Args:
            given: the batch.
            update: made of it, or of the part that an assessment kept.
            names: of all samples of the batch.
            assessed: the assessment, where there was one.
            binding: of the assessment.

        Raises:
            GuardError: they don't belong together, or can't be reviewed.
        """
        inputs, targets = check_batch(given)
        total = len(inputs)
        if binding is not None:
            inputs, targets, names = binding.part(inputs, targets, names)
        handed = self._handed(inputs, targets, update)
        if handed.noise is not None:
            scores, extremes = handed.noise
            pattern = noise_pattern(scores.numpy(), extremes, self.setup.client.shapes)
            if pattern is not None:
                return self._blocked(pattern)
        self.warnings += [*self.setup.client.loss_warnings(handed.batch), *target_notes(handed.batch.targets)]
        again = self._sanitised_before(handed.key)
        if again is not None and handed.unproven is None:
            return replace(again, model_digest=self.snapshot.model_digest)
        ids = self.setup.hidden_ids(inputs, names)
        known = None if binding is None else binding.known(handed.batch, self.snapshot)
        labels = duplicate_labels(inputs, ids)
        for attempt in range(ATTEMPTS):
            position = self.setup.position()
            accounts = self.setup.accounts(ids, position)
            # What was found before somebody else's round entered the ledger isn't in the ledger's directions.
            found = None if attempt else current(known, ids, labels, accounts)
            outcome = self._outcome(handed, ids, labels, accounts, found)
            if assessed is not None and assessed.action == "sanitise":
                outcome = _after_dropping(outcome, assessed.reasons, total - len(inputs))
            decision = self._entered(handed, outcome, ids, accounts, position)
            if decision is not None:
                return decision
        raise GuardError("the ledger changed again and again during the review; let fewer clients share it")

    def _handed(self, inputs: Tensor, targets: Tensor, given: UpdateLike) -> Handed:
        client = self.setup.client
        update = Update.of(given, client.shapes)
        batch, vector = client.batch(inputs, targets), update.vector()
        mean = client.mean(batch)
        mismatch = client.mismatch(vector, mean)
        if mismatch is not None:
            raise GuardError(mismatch)
        law = client.noise
        if law is not None:
            key = digest_of_update(update.tensors)
        else:
            key = _content_key(batch, self.snapshot.model_digest)
            key = self.setup.memory.clean.key_of(mean, self.snapshot.model_digest, key)
        noise = None if law is None else observed_noise(law, vector, mean, client.shapes.values())
        return Handed(batch, update, vector, mean, noise, key, self._unproven_step(mean))

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
        if steps is not None or self.setup.policy.unproven_step == "accept":
            return None
        hidden = self.setup.client.undetected(mean)
        if hidden <= TOLERANCE:
            return None
        return (
            "an update of several local steps can't be told apart from one step at this noise, which hides "
            f"deviations up to {hidden:.2g} times the gradient; say local_steps=1 where the update is made in one "
            'step, or set unproven_step = "accept" in the policy'
        )

    def _outcome(
        self, handed: Handed, ids: list[str], labels: list[int], accounts: dict[str, Account] | None,
        found: Assessment | None,
    ) -> Outcome:  # fmt: skip
        """What the policy says of the numbers; of an unproven step they are worked out, and it is withheld."""
        setup, unproven = self.setup, handed.unproven
        policy = setup.policy if unproven is None else replace(setup.policy, on_violation="block")
        work = Review(
            handed.batch, ids, classes_of(handed.batch.targets), accounts, setup.client, setup.exact, setup.prior,
            policy, self.end, found, labels,
        )  # fmt: skip
        outcome = work.decide(handed.vector, handed.mean)
        self.warnings += [text for text in work.warnings if text not in self.warnings]
        if unproven is None:
            return outcome
        reasons = [unproven, *([] if outcome.action == "allow" else outcome.reasons)]
        return replace(outcome, action="block", vector=None, reasons=reasons)

    def _entered(
        self, handed: Handed, outcome: Outcome, ids: list[str], accounts: dict[str, Account] | None,
        position: Position | None,
    ) -> Decision | None:  # fmt: skip
        """The decision once ledger and memory have what is about to leave; None where the accounts have changed."""
        model_digest = self.snapshot.model_digest
        if outcome.vector is None:
            return replace(outcome.decision(None), model_digest=model_digest)
        try:
            as_it_is = outcome.vector is handed.vector
            sent = handed.update if as_it_is else handed.update.like(outcome.vector, outcome.noise_total)
        except GuardError as error:  # a violation was found already, so nothing may let this pass any more
            reasons = [*outcome.reasons, f"sanitising failed: {error}"]
            return replace(outcome.decision(None), action="block", reasons=reasons, model_digest=model_digest)
        update = sent.handed_back()
        digest = digest_of_update(update)
        noise = self._noise_of(handed, outcome)
        try:
            repeated = self.setup.memory.refuse_or_remember(noise)
            if repeated is None and self.setup.ledger is not None:
                after = _accounts_after(outcome, ids, accounts or {})
                before = {name: one for name, one in (accounts or {}).items() if name in after}
                if self.setup.ledger.record(before, after, digest, position, noise) is None:
                    return None
        except RepetitionError as error:
            repeated = str(error)
        if repeated is not None:
            return replace(self._blocked(repeated), exposures=outcome.exposures)
        decision = replace(outcome.decision(update), model_digest=model_digest, update_digest=digest)
        if not outcome.noise_added:
            return decision
        if handed.noise is None:
            self.setup.memory.clean.remember(handed.mean, model_digest, handed.key)
        return self.setup.memory.remember_result(handed.key, decision)

    def _blocked(self, reason: str) -> Decision:
        return Decision("block", None, [reason], model_digest=self.snapshot.model_digest)

    def _sanitised_before(self, key: str) -> Decision | None:
        """The first result for an update that was sanitised before: a second draw would average the first away."""
        known, first = self.setup.memory.sanitised(key)
        if not known:
            return None
        if first is None or self.setup.policy.judge(first.exposures).reasons:
            return Decision("block", None, [SECOND_DRAW])
        return replace(first, reasons=[*first.reasons, "it was sanitised before: the same result again"])

    def _noise_of(self, handed: Handed, outcome: Outcome) -> NoiseRound:
        """What is to be remembered of the client's noise, and of what sanitising made of it."""
        noises, extremes = list[Tensor](), None
        if handed.noise is not None and outcome.vector is not None:
            scores, extremes = handed.noise
            noises = [scores, *([outcome.vector - handed.mean] if outcome.noise_added else [])]
        sizes = [shape.numel() for shape in self.setup.client.shapes.values()]
        sanitised = bool(outcome.noise_added)
        return self.setup.memory.round_of(noises, sizes, handed.key, sanitised=sanitised, extremes=extremes)


def is_count(value: object) -> TypeGuard[int]:
    """Whether something is a whole number of at least 0, and no truth value."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def _content_key(batch: Batch, model_digest: str) -> str:
    """Digest of what is one update without noise: the samples, in any order and any dtype, and the weights."""
    samples = sorted(sample_digest(*pair) for pair in zip(batch.inputs, batch.targets, strict=True))
    return hashlib.sha256(b"".join([model_digest.encode(), *samples])).hexdigest()


def _accounts_after(outcome: Outcome, ids: list[str], accounts: dict[str, Account]) -> dict[str, Account]:
    """The accounts with what is about to leave.

    Raises:
        GuardError: a sample was not assessed.
    """
    after: dict[str, Account] = {}
    found = outcome.found
    for place in outcome.kept:
        if place not in found.information:
            raise GuardError("the ledger can't count samples that were not assessed; raise the budget")
        one = found.account(place, outcome.noise_total, len(outcome.kept), accounts.get(ids[place]))
        # Twins under one id are counted once, each with the information of all: the most exposed one's counts.
        if ids[place] not in after or one.revealed > after[ids[place]].revealed:
            after[ids[place]] = one
    return after


def _after_dropping(outcome: Outcome, reasons: list[str], dropped: int) -> Outcome:
    """The outcome of a review of what an assessment left, told as the sanitising that it was."""
    action = "sanitise" if outcome.action == "allow" else outcome.action
    return replace(outcome, action=action, reasons=[*reasons, *outcome.reasons], dropped=outcome.dropped + dropped)
