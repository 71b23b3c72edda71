"""One attempt at one review: from the batch's numbers to what may leave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from scipy.stats import hypergeom
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.guard.assessment import Assessment, Assessor
from riskaudit.guard.client import Client
from riskaudit.guard.decision import Action, Decision, told
from riskaudit.guard.ledger import Account
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.sanitising import drop_exposed, least_noise
from riskaudit.policy import Exposure, Policy
from riskaudit.priors import Prior
from riskaudit.priors.contradiction import odd_note, odd_samples, tight_note
from riskaudit.release import Batch

# Confidence of what is said about samples that were not drawn.
SAMPLING_CONFIDENCE = 0.95
# Noise of so many times the update's root mean square leaves a cosine of 0.1 with it; it takes the mean over a hundred
# such updates to have as much gradient as noise, which is more clients than most rounds have.
USELESS = 10.0
# Products per sample of the further looks that sanitising takes at the samples that may decide.
FURTHER_LOOKS = (32, 128)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What may leave, before it has the client's form.

    Attributes:
        action: of the decision.
        vector: the update [P]; None to withhold.
        reasons: of the decision.
        exposures: of the samples that the vector holds.
        kept: their places in the batch.
        noise_total: Fisher-equivalent std of all noise on the update.
        noise_added: std of what sanitising added.
        found: what the exposures were read off.
        dropped: samples that were left out.
    """

    action: Action
    vector: Tensor | None
    reasons: list[str]
    exposures: list[Exposure]
    kept: list[int]
    noise_total: float
    found: Assessment
    noise_added: float = 0.0
    dropped: int = 0

    def decision(self, update: dict[str, Tensor] | list[Tensor] | None) -> Decision:
        """With the vector in the client's form."""
        return Decision(
            self.action, update, self.reasons, self.exposures, noise_std=self.noise_added, dropped=self.dropped,
            products=self.found.products,
        )  # fmt: skip


class Review:
    """One attempt.

    Args:
        batch: what the update was computed from.
        ids: of the samples.
        groups: classes of the samples.
        accounts: of a ledger, by id; None without one.
        client: its release.
        exact: the same client in float64, for refining.
        prior: what an attacker is taken to know.
        policy: limits and what to do.
        end: of the time, on the monotonic clock.
        found: what is known of the batch already.
        labels: the same for samples that are one person's; None where nobody has looked.
    """

    def __init__(
        self, batch: Batch, ids: list[str], groups: list[str | None], accounts: dict[str, Account] | None,
        client: Client, exact: Callable[[], Client], prior: Prior, policy: Policy, end: float,
        found: Assessment | None = None, labels: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.batch, self.ids, self.groups, self.accounts = batch, ids, groups, accounts
        self.client, self.exact, self.prior, self.policy, self.end = client, exact, prior, policy, end
        failure = 1 - policy.confidence
        if accounts is not None:
            # The failures of all rounds add up to what the policy allows: sum 1 / (t (t + 1)) = 1.
            rounds = 1 + max((account.rounds for account in accounts.values()), default=0)
            failure /= rounds * (rounds + 1)
        # The first look, one at a clipped release, the further ones, and what is refined sample by sample, twice.
        self.look_failure = failure / (4 + len(FURTHER_LOOKS))
        self.labels = labels or []
        # Sentences for the decision that change no action.
        self.warnings: list[str] = [] if found is None else found.warnings
        self._found = found

    def decide(self, vector: Tensor | None, mean: Tensor | None) -> Outcome:
        """Hold the batch against the policy, and do what it says.

        Args:
            vector: the update [P]; None where there is none yet, so that only the samples can be chosen.
            mean: what it should be before noise [P].
        """
        noise, everybody = self.client.noise_std, list(range(len(self.ids)))
        if noise or self.accounts is not None:
            found = self._assessed(self.client)
            if self.policy.max_gradients is None and noise:
                self._refine_undecided(found, noise)
        else:
            found = Assessment(self.batch, self.ids, self.groups, summed=self.client.summed, labels=self.labels)
        exposures = found.exposures(noise, self.accounts)
        self.warnings = [*self.warnings, *found.concentration_note(exposures)]
        judgement = self.policy.judge(exposures)
        # Only who allows everything to be revealed allows this.
        disclosed = not noise and self.policy.max_revealed != 1
        doubts = {found.doubt(place, noise, len(self.ids)) for place in everybody} - {None}
        reasons = [*(["the update carries no noise: assume full disclosure"] if disclosed else []), *judgement.reasons]
        if judgement.unassessed and reasons:
            reasons += sorted(doubt for doubt in doubts if doubt is not None)
        passing = Outcome("allow", vector, [], exposures, everybody, noise, found)
        if not reasons:
            return replace(passing, reasons=[self._within(found), *judgement.notes, *self._together()])
        reasons += [*judgement.notes, *self._together()]
        blocked = replace(passing, action="block", vector=None, reasons=reasons)
        if self.policy.on_violation == "block":
            return blocked
        if self.policy.on_violation == "warn":
            too_many = len(judgement.unassessed) > self.policy.max_unassessed * len(exposures)
            if too_many and self.policy.on_failure == "block":
                return blocked
            return replace(passing, action="warn", reasons=reasons)
        return self._mended(blocked, vector, mean)

    def _mended(self, blocked: Outcome, vector: Tensor | None, mean: Tensor | None) -> Outcome:
        """The sanitised update, or the reason why there is none."""
        try:
            changed = self._sanitised(vector, mean)
        except Exception as error:  # a violation was found already, so nothing may let this pass any more
            return replace(blocked, reasons=[*blocked.reasons, f"sanitising failed: {told(error)}"])
        if changed is None:
            early = vector is None and self.policy.sanitiser != "drop"
            why = "before there is an update" if early else "that"
            return replace(
                blocked, reasons=[*blocked.reasons, f"sanitising by {self.policy.sanitiser} can't mend {why}"]
            )
        return replace(changed, reasons=[*blocked.reasons, *changed.reasons])

    def _sanitised(self, vector: Tensor | None, mean: Tensor | None) -> Outcome | None:
        noise, policy = self.client.noise_std, self.policy
        if policy.sanitiser == "drop":
            if not noise:
                return None
            found = self._assessed(self.client)
            kept = drop_exposed(found, policy, noise, self.accounts)
            if kept is None:
                return None
            remaining = None
            if vector is not None and mean is not None:
                remaining = self.client.mean(self.batch.select(kept)) + (vector - mean)
            exposures = [found.exposure(place, noise, len(kept), self.accounts) for place in kept]
            dropped = len(self.ids) - len(kept)
            return Outcome(
                "sanitise", remaining, [f"{dropped} of {len(self.ids)} samples were left out"], exposures, kept, noise,
                found, dropped=dropped,
            )  # fmt: skip
        if vector is None or mean is None:
            return None
        said, client = [], self.client
        # Without noise the difference is nothing but what the comparison tolerates, and nobody has looked at it.
        drawn = torch.zeros_like(mean) if self.client.noise is None else vector - mean
        vector = mean + drawn
        if policy.sanitiser == "clip":
            assert policy.clip_norm is not None
            client = self.client.clipped(policy.clip_norm)
            vector = client.mean(self.batch) + drawn
            said = [f"every sample's gradient was clipped to {policy.clip_norm:g}"]
        clean, found = vector - drawn, self._assessed(client)
        total = least_noise(found, policy, noise, self.accounts, _Refiner(self, client, found))
        if total is None:
            return None
        gaussian = self.client.noise is not None and self.client.noise.law == "gaussian"
        # Gaussian noises add up. With noise of another law the sum tells no more than the Gaussian part alone.
        added = 0.0 if total <= noise else math.sqrt(total**2 - noise**2) if gaussian else total
        if added:
            vector = vector + SecureNoise("gaussian", added).draw(len(vector))
            said.append(f"Gaussian noise of std {added:.6g} was added to every entry of the update")
            self.warnings = [*self.warnings, *_useless(total, clean)]
        return Outcome(
            "sanitise", vector, said, found.exposures(total, self.accounts), list(range(len(self.ids))), total, found,
            added,
        )  # fmt: skip

    def _assessed(self, client: Client) -> Assessment:
        """Quickly, of this client's release."""
        if self._found is not None and client is self.client:
            return self._found
        advice = "give the guard a prior (prior or prior_std) of data like these"
        odd = odd_samples(self.prior, self.batch.inputs, self.batch.targets, advice)
        tight = tight_note(self.prior, self.batch.inputs, self.batch.targets)
        self.warnings = [*tight, *odd_note(self.ids, odd)]
        assessor = Assessor(client, self.prior, self.policy, self.accounts is not None)
        found = assessor.quick(
            self.batch, self.ids, self.groups, self.accounts, self.look_failure, self.end, self.labels
        )
        found.warnings = self.warnings
        if not found.information:
            raise GuardError(
                f"the budget of {self.policy.budget_seconds:g} s was over before a bound existed; raise budget_seconds"
                if self.policy.budget_seconds is not None
                else "not one product with the Hessian was made, so nothing can be claimed"
            )
        if client is self.client:
            self._found = found
        return found

    def _refine_undecided(self, found: Assessment, noise: float) -> None:
        refiner = _Refiner(self, self.client, found)
        for place in range(len(self.ids)):
            if place in found.information and self.policy.undecided(found.exposure(place, noise, len(self.ids))):
                refiner.refine(place, noise)

    def _together(self) -> list[str]:
        """What is said of samples that count as one."""
        twins = sum(self.labels.count(label) > 1 for label in self.labels)
        return [f"{twins} samples are copies, views or ids of another one and count together"] if twins else []

    def _within(self, found: Assessment) -> str:
        """What an allowed batch may be said to keep."""
        total, seen = len(self.ids), len(found.information) or len(self.ids)
        if seen == total:
            return f"all {total} samples are within the limits"
        most = _most_unseen(total, seen)
        return (
            f"{seen} of {total} samples, drawn at random, are within the limits; of the others, at most {most} aren't, "
            f"with {SAMPLING_CONFIDENCE:.0%} confidence"
        )


class _Refiner:
    """See `Refiner`.

    Args:
        review: whose time and probability of failure are spent.
        client: its client, or a changed one.
        found: to make narrower.
    """

    def __init__(self, review: Review, client: Client, found: Assessment) -> None:
        self._review, self._client, self._found = review, client, found
        self._looks = iter(FURTHER_LOOKS)

    def narrow(self, places: list[int]) -> bool:
        products = next(self._looks, None)
        if products is None or time.monotonic() >= self._review.end:
            return False
        self._assessor(self._client).look(self._found, places, products, self._review.look_failure, self._review.end)
        return True

    def refine(self, place: int, noise_std: float) -> None:
        failure = self._review.look_failure / len(self._found.ids)
        self._exact.refine(self._found, place, noise_std, failure, self._review.end)

    @cached_property
    def _exact(self) -> Assessor:
        double = self._review.exact()
        double.follow(self._review.client)
        if self._client is not self._review.client:
            assert self._review.policy.clip_norm is not None
            double = double.clipped(self._review.policy.clip_norm)
        return self._assessor(double)

    def _assessor(self, client: Client) -> Assessor:
        return Assessor(client, self._review.prior, self._review.policy, sketched=False)


def _useless(noise_std: float, clean: Tensor) -> list[str]:
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
