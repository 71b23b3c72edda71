"""One attempt at one review: from the batch's numbers to what may leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import hypergeom
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.guard.client import Client
from riskaudit.guard.decision import Decision, describe
from riskaudit.guard.estimation import FURTHER_LOOKS, Estimator
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.ledger import Account, Ledger
from riskaudit.guard.log import AuditLog, Position
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.sanitising import drop_exposed, least_noise
from riskaudit.policy import Policy
from riskaudit.priors import Prior
from riskaudit.priors.contradiction import odd_note, odd_samples, tight_note

# Confidence of what is said about samples that were not drawn.
SAMPLING_CONFIDENCE = 0.95
# Noise of so many times the update's root mean square leaves a cosine of 0.1 with it; it takes the mean over a hundred
# such updates to have as much gradient as noise, which is more clients than most rounds have.
USELESS = 10.0


@dataclass(frozen=True, eq=False)
class ReviewContext:
    """What a guard reviews with.

    Attributes:
        client: its release.
        exact: the same in float64, made when it is needed.
        prior: what an attacker is taken to know.
        policy: limits and what to do.
        ledger: None without one.
        log: None without one.
        memory: of noise and of sanitised updates.
        hidden_ids: makes hidden ids of samples, of their names or of their own content.
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
class Draft:
    """A decision whose update hasn't got the client's form yet.

    Attributes:
        decision: without its update.
        vector: the update [P]; None to withhold.
        indices: of the samples in the batch that the vector holds.
        noise_std: Fisher-equivalent std of all noise on the vector.
        information: what the decision was read off.
    """

    decision: Decision
    vector: Tensor | None
    indices: list[int]
    noise_std: float
    information: BatchInformation

    def blocked(self, reasons: list[str]) -> Draft:
        """Withheld for these reasons."""
        return replace(self, vector=None, decision=replace(self.decision, action="block", reasons=reasons))

    def final(
        self, update: dict[str, Tensor] | list[Tensor] | None, model_digest: str, update_digest: str = ""
    ) -> Decision:
        """The decision with the vector in the client's form."""
        decision = replace(self.decision, update=update, products=self.information.products)
        return replace(decision, model_digest=model_digest, update_digest=update_digest)


class Review:
    """One attempt.

    Args:
        context: what to review with.
        empty: what the update was computed from, before anything was worked out.
        end: when to stop, on the monotonic clock.
        information: what is known of the same samples already.
    """

    def __init__(
        self,
        context: ReviewContext,
        empty: BatchInformation,
        end: float,
        information: BatchInformation | None = None,
    ) -> None:
        self.context, self.empty, self.end = context, empty, end
        self.client, self.policy = context.client, context.policy
        failure = 1 - self.policy.confidence
        if empty.accounts is not None:
            # The failures of all rounds add up to what the policy allows: sum 1 / (t (t + 1)) = 1.
            rounds = 1 + max((account.rounds for account in empty.accounts.values()), default=0)
            failure /= rounds * (rounds + 1)
        # The first look, one at a clipped release, the further ones, and what is refined sample by sample, twice.
        self.look_failure = failure / (4 + len(FURTHER_LOOKS))
        # Sentences for the decision that change no action.
        self.warnings: list[str] = [] if information is None else information.warnings
        self._information = information

    def decide(self, vector: Tensor | None, mean: Tensor | None) -> Draft:
        """Hold the batch against the policy, and do what it says.

        Args:
            vector: the update [P]; None where there is none yet, so that only the samples can be chosen.
            mean: what it should be before noise [P].
        """
        noise, policy, count, information = self.client.noise_std, self.policy, len(self.empty), self.empty
        if noise or information.accounts is not None:
            information = self._estimated(self.client)
            if policy.max_gradients is None and noise:
                self._refine_undecided(information, noise)
        exposures = information.exposures(noise)
        self.warnings = [*self.warnings, *information.concentration_note(exposures)]
        judgement = policy.judge(exposures)
        # Only who allows everything to be revealed allows this.
        disclosed = not noise and policy.max_revealed != 1
        doubts = {information.doubt(index, noise, count) for index in range(count)}
        reasons = [*(["the update carries no noise: assume full disclosure"] if disclosed else []), *judgement.reasons]
        if judgement.unassessed and reasons:
            reasons += sorted(doubt for doubt in doubts if doubt is not None)
        notes = [*judgement.notes, *self._twins_note()]
        passing = Draft(Decision("allow", None, [], exposures), vector, list(range(count)), noise, information)
        if not reasons:
            reasons = [self._within_limits(information), *notes]
            return replace(passing, decision=replace(passing.decision, reasons=reasons))
        reasons += notes
        if policy.on_violation == "sanitise":
            return self._sanitise(passing.blocked(reasons), vector, mean)
        too_many = len(judgement.unassessed) > policy.max_unassessed * len(exposures)
        if policy.on_violation == "block" or (too_many and policy.on_failure == "block"):
            return passing.blocked(reasons)
        return replace(passing, decision=replace(passing.decision, action="warn", reasons=reasons))

    def _sanitise(self, blocked: Draft, vector: Tensor | None, mean: Tensor | None) -> Draft:
        """The sanitised update, or the reason why there is none."""
        sanitiser, reasons = self.policy.sanitiser, blocked.decision.reasons
        try:
            sanitised = self._drop(vector, mean) if sanitiser == "drop" else self._add_noise(vector, mean)
        except Exception as error:  # a violation was seen already, so nothing may let this pass any more
            return blocked.blocked([*reasons, f"sanitising failed: {describe(error)}"])
        if sanitised is None:
            what = "before there is an update" if vector is None and sanitiser != "drop" else "that"
            return blocked.blocked([*reasons, f"sanitising by {sanitiser} can't mend {what}"])
        decision = replace(sanitised.decision, reasons=[*reasons, *sanitised.decision.reasons])
        return replace(sanitised, decision=decision)

    def _drop(self, vector: Tensor | None, mean: Tensor | None) -> Draft | None:
        """Without the samples over a limit; None where that doesn't do."""
        noise = self.client.noise_std
        if not noise:
            return None
        information = self._estimated(self.client)
        indices = drop_exposed(information, self.policy, noise)
        if indices is None:
            return None
        remaining = None
        if vector is not None and mean is not None:
            remaining = self.client.mean(self.empty.batch.select(indices)) + (vector - mean)
        exposures = [information.exposure(index, noise, len(indices)) for index in indices]
        dropped, total = len(information) - len(indices), len(information)
        reasons = [f"{dropped} of {total} samples were left out"]
        decision = Decision("sanitise", None, reasons, exposures, dropped=dropped)
        return Draft(decision, remaining, indices, noise, information)

    def _add_noise(self, vector: Tensor | None, mean: Tensor | None) -> Draft | None:
        """The update with the least noise that is sure to do, clipped before if the policy says so; None if none is."""
        if vector is None or mean is None:
            return None
        noise, policy, client, law = self.client.noise_std, self.policy, self.client, self.client.noise
        reasons = []
        # Without noise the difference is nothing but what the comparison tolerates, and nobody has looked at it.
        drawn = torch.zeros_like(mean) if law is None else vector - mean
        vector = mean + drawn
        if policy.sanitiser == "clip":
            assert policy.clip_norm is not None
            client = self.client.clipped(policy.clip_norm)
            vector = client.mean(self.empty.batch) + drawn
            reasons.append(f"every sample's gradient was clipped to {policy.clip_norm:g}")
        clean, information = vector - drawn, self._estimated(client)
        total = least_noise(information, policy, noise, self._estimator(client))
        if total is None:
            return None
        gaussian = law is not None and law.law == "gaussian"
        # Gaussian noises add up. With noise of another law the sum tells no more than the Gaussian part alone.
        added = 0.0 if total <= noise else math.sqrt(total**2 - noise**2) if gaussian else total
        if added:
            vector = vector + SecureNoise("gaussian", added).draw(len(vector))
            reasons.append(f"Gaussian noise of std {added:.6g} was added to every entry of the update")
            self.warnings = [*self.warnings, *_useless_note(total, clean)]
        decision = Decision("sanitise", None, reasons, information.exposures(total), noise_std=added)
        return Draft(decision, vector, list(range(len(information))), total, information)

    def _estimated(self, client: Client) -> BatchInformation:
        """Quickly, of this client's release.

        Raises:
            GuardError: nothing was estimated, for want of time.
        """
        if self._information is not None and client is self.client:
            return self._information
        advice = "give the guard a prior (prior or prior_std) of data like these"
        batch, prior = self.empty.batch, self.context.prior
        odd = odd_samples(prior, batch.inputs, batch.targets, advice)
        tight = tight_note(prior, batch.inputs, batch.targets)
        self.warnings = [*tight, *odd_note(self.empty.ids, odd)]
        information = self._estimator(client).quick(self.empty)
        information.warnings = self.warnings
        if not information.num_assessed:
            raise GuardError(
                f"the budget of {self.policy.budget_seconds:g} s was over before a bound existed; raise budget_seconds"
                if self.policy.budget_seconds is not None
                else "not one product with the Hessian was made, so nothing can be claimed"
            )
        if client is self.client:
            self._information = information
        return information

    def _refine_undecided(self, information: BatchInformation, noise: float) -> None:
        estimator = self._estimator(self.client)
        for index, sample in enumerate(information.samples):
            if sample.information is not None:
                exposure = information.exposure(index, noise, len(information))
                if self.policy.undecided(exposure):
                    estimator.refine(information, index, noise)

    def _estimator(self, client: Client) -> Estimator:
        """An estimator of the review's client, or of the same one clipped."""

        def exact() -> Client:
            double = self.context.exact()
            double.follow(self.client)
            if client is self.client:
                return double
            assert self.policy.clip_norm is not None
            return double.clipped(self.policy.clip_norm)

        return Estimator(client, exact, self.context.prior, self.policy, self.end, self.look_failure)

    def _twins_note(self) -> list[str]:
        """What is said of samples that count as one."""
        twins = sum(len(self.empty.twins(index)) > 1 for index in range(len(self.empty)))
        return [f"{twins} samples are copies, views or ids of another one and count together"] if twins else []

    def _within_limits(self, information: BatchInformation) -> str:
        """What an allowed batch may be said to keep."""
        total, seen = len(information), information.num_assessed or len(information)
        if seen == total:
            return f"all {total} samples are within the limits"
        most = _most_unseen(total, seen)
        return (
            f"{seen} of {total} samples, drawn at random, are within the limits; of the others, at most {most} aren't, "
            f"with {SAMPLING_CONFIDENCE:.0%} confidence"
        )


def _useless_note(noise_std: float, clean: Tensor) -> list[str]:
    """What is to be said where noise of this std hides what the update [P] before noise would have taught."""
    size = float(clean.square().mean().sqrt())
    if not noise_std > USELESS * size > 0:
        return []
    times = noise_std / size
    return [
        f"the noise on this update has {times:.3g} times the root mean square of the gradient's entries, so that about "
        f"{times**2:.2g} updates like it make a mean with as much gradient as noise; use larger batches, or a limit "
        "that asks for less noise"
    ]


def _most_unseen(total: int, seen: int) -> int:
    """The most of the unseen samples that can be over a limit if none of those drawn at random is."""
    for most in range(total - seen, 0, -1):
        if hypergeom.pmf(0, total, most, seen) > 1 - SAMPLING_CONFIDENCE:
            return most
    return 0
