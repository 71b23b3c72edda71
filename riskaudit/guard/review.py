"""The review of a batch: from its numbers to what may leave, with or without an update that was made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import hypergeom
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.guard.base_client import BaseClient
from riskaudit.guard.client import Client
from riskaudit.guard.decision import Decision, describe
from riskaudit.guard.estimation import FURTHER_LOOKS, Estimator
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.joint_client import JointClient
from riskaudit.guard.joint_estimation import JointEstimator
from riskaudit.guard.leaks import refuse_leaks
from riskaudit.guard.ledger import Account, Ledger
from riskaudit.guard.log import AuditLog, Line
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.sanitising import drop_exposed, least_noise
from riskaudit.policy import Policy, all_within, held_against
from riskaudit.priors import Prior
from riskaudit.priors.fitting import odd_note, odd_samples, tight_note
from riskaudit.results.verdicts import DROWNED

# Confidence of what is said about samples that were not drawn.
SAMPLING_CONFIDENCE = 0.95
# Noise of so many times the update's root mean square leaves a cosine of 0.1 with it; it takes the mean over a hundred
# such updates to have as much gradient as noise, which is more clients than most rounds have.
USELESS = 10.0


@dataclass(frozen=True, eq=False)
class Draft:
    """A decision whose update hasn't got the client's form yet.

    Attributes:
        decision: without its update.
        vector: the update [P]; None to withhold.
        indices: of the samples in the batch that the vector holds.
        noise_std: Fisher-equivalent std of all noise on the vector.
        information: what the decision was read off.
        clean: the vector before all noise [P]; None where there is no update yet.
    """

    decision: Decision
    vector: Tensor | None
    indices: list[int]
    noise_std: float
    information: BatchInformation
    clean: Tensor | None = None

    def saying(self, **changes: object) -> Draft:
        """The same with other words or numbers in its decision."""
        return replace(self, decision=replace(self.decision, **changes))  # type: ignore[arg-type]

    def blocked(self, reasons: list[str]) -> Draft:
        """Withheld for these reasons."""
        return replace(self, vector=None).saying(action="block", reasons=reasons)


@dataclass(frozen=True, eq=False)
class Review:
    """What a guard reviews one batch with.

    Attributes:
        client: its release.
        prior: what an attacker is taken to know.
        policy: limits and what to do.
        ledger: None without one.
        log: None without one.
        memory: of noise and of sanitised updates.
        salt: of the ids of samples.
        end: when to stop, on the monotonic clock.
    """

    client: BaseClient
    prior: Prior
    policy: Policy
    ledger: Ledger | None
    log: AuditLog | None
    memory: NoiseMemory
    salt: bytes
    end: float

    def accounts(self, ids: Sequence[str]) -> tuple[dict[str, Account] | None, Line | None]:
        """What the ledger has of these samples, seen to be as it was written, and the log's last line."""
        last = None if self.log is None else self.log.last()
        return None if self.ledger is None else self.ledger.accounts(ids, last), last

    def decide(
        self,
        empty: BatchInformation,
        vector: Tensor | None = None,
        mean: Tensor | None = None,
        assessed: BatchInformation | None = None,
    ) -> Draft:
        """Hold the batch against the policy, and do what it says.

        Args:
            empty: the samples, before anything was worked out.
            vector: the update [P]; None where there is none yet, so that only the samples can be chosen.
            mean: what it should be before noise [P].
            assessed: what is known of the same samples already.
        """
        noise, policy, count = self.client.noise_std, self.policy, len(empty)
        if policy.attacker == "outsider" and not self.client.is_joint:
            raise GuardError(
                'expected attacker = "outsider" in a policy for samples that leave together, found a release in which '
                "each has a part of its own, as exposed as if the others were known; record rounds of local training, "
                "put mean:all into the release, or leave the policy's attacker out"
            )
        leaks = refuse_leaks(self.client, empty, self.prior, policy)
        if leaks and policy.on_violation != "warn":
            # Whatever the proxies would say on average.
            return Draft(Decision("block", None, leaks), None, [], noise, empty)
        information = empty if assessed is None else assessed
        if noise or empty.accounts is not None:
            if assessed is None:
                information = self._estimated(self.client, empty)
            if (policy.max_trainings if self.client.is_joint else policy.max_gradients) is None and noise:
                self._refine_undecided(information, noise)
        exposures = information.exposures(noise)
        warnings = [*information.warnings, *information.concentration_note(exposures)]
        judgement = policy.judge(exposures)
        # Only who allows everything to be revealed allows this.
        disclosed = not noise and policy.max_revealed != 1
        doubts = {information.doubt(index, noise, count) for index in range(count)}
        reasons = [
            *leaks,
            *(["the update carries no noise: assume full disclosure"] if disclosed else []),
            *judgement.reasons,
        ]
        if judgement.unassessed and reasons:
            reasons += sorted(doubt for doubt in doubts if doubt is not None)
        notes = [*judgement.notes, *_twins_note(empty)]
        if policy.attacker == "outsider":
            # Where trainings were too few for the outsider's numbers, those of the informed stand in their place.
            informed = any(each.revealed is not None and each.informed_revealed is None for each in exposures)
            notes += held_against("informed" if informed else "outsider")
        decision = Decision("allow", None, [], exposures, warnings=warnings)
        passing = Draft(decision, vector, list(range(count)), noise, information, mean)
        if not reasons:
            return passing.saying(reasons=[_within_limits(information), *notes])
        reasons += notes
        if policy.on_violation == "sanitise":
            return self._sanitise(passing.blocked(reasons), empty, vector, mean)
        too_many = len(judgement.unassessed) > policy.max_unassessed * len(exposures)
        if policy.on_violation == "block" or (too_many and policy.on_failure == "block"):
            return passing.blocked(reasons)
        return passing.saying(action="warn", reasons=reasons)

    def _sanitise(self, blocked: Draft, empty: BatchInformation, vector: Tensor | None, mean: Tensor | None) -> Draft:
        """The sanitised update, or the reason why there is none."""
        sanitiser, reasons = self.policy.sanitiser, blocked.decision.reasons
        try:
            if isinstance(self.client, JointClient) and sanitiser != "noise":
                # There is no sample whose part could be clipped or left out.
                sanitised = None
            elif sanitiser == "drop":
                sanitised = self._drop(blocked, vector, mean)
            else:
                sanitised = None if vector is None or mean is None else self._add_noise(blocked, empty, vector, mean)
        except Exception as error:  # a violation was seen already, so nothing may let this pass any more
            return blocked.blocked([*reasons, f"sanitising failed: {describe(error, '')}"])
        if sanitised is None:
            what = "before there is an update" if vector is None and sanitiser != "drop" else "that"
            return blocked.blocked([*reasons, f"sanitising by {sanitiser} can't mend {what}"])
        return sanitised.saying(action="sanitise", reasons=[*reasons, *sanitised.decision.reasons])

    def _drop(self, blocked: Draft, vector: Tensor | None, mean: Tensor | None) -> Draft | None:
        """Without the samples over a limit; None where that doesn't do."""
        noise, information = blocked.noise_std, blocked.information
        indices = drop_exposed(information, self.policy, noise) if noise else None
        if indices is None:
            return None
        remaining = clean = None
        if vector is not None and mean is not None:
            clean = self.client.mean(information.batch.select(indices))
            remaining = clean + (vector - mean)
        exposures = [information.exposure(index, noise, len(indices)) for index in indices]
        dropped, total = len(information) - len(indices), len(information)
        draft = replace(blocked, vector=remaining, indices=indices, clean=clean)
        return draft.saying(
            reasons=[f"{dropped} of {total} samples were left out"], exposures=exposures, dropped=dropped
        )

    def _add_noise(self, blocked: Draft, empty: BatchInformation, vector: Tensor, mean: Tensor) -> Draft | None:
        """The update with the least noise that is sure to do, clipped before if the policy says so; None if none is."""
        noise, policy, client, law = blocked.noise_std, self.policy, self.client, self.client.noise
        # Without noise the difference is nothing but what the comparison tolerates, and nobody has looked at it.
        drawn = torch.zeros_like(mean) if law is None else vector - mean
        information, clean, reasons = blocked.information, mean, []
        if policy.sanitiser == "clip":
            assert policy.clip_norm is not None
            assert isinstance(self.client, Client)
            client = self.client.clipped(policy.clip_norm)
            clean = client.mean(empty.batch)
            reasons.append(f"every sample's gradient was clipped to {policy.clip_norm:g}")
        if client is not self.client or not information.num_assessed:
            information = self._estimated(client, empty)
        total = least_noise(information, policy, noise, self._estimator(client, empty))
        if total is None:
            return None
        size = float(clean.norm())
        if total > max(noise, DROWNED * size):
            times = total / size if size else math.inf
            raise GuardError(
                f"noise of std {total:.3g} on every entry would be needed, {times:.3g} times the norm of the whole "
                "update, which leaves nothing of it (entries near 0 that Adam magnifies, or a saturated network: the "
                "derivative says nothing at so much noise); use another optimizer, larger batches or a limit that asks "
                "for less"
            )
        gaussian = law is not None and law.law == "gaussian"
        # Gaussian noises add up. With noise of another law the sum tells no more than the Gaussian part alone.
        added = 0.0 if total <= noise else math.sqrt(total**2 - noise**2) if gaussian else total
        vector, warnings = clean + drawn, blocked.decision.warnings
        if information is not blocked.information:
            warnings = information.warnings
        if added:
            vector = vector + SecureNoise("gaussian", added).draw(len(vector))
            reasons.append(f"Gaussian noise of std {added:.6g} was added to every entry of the update")
            warnings = [*warnings, *_useless_note(total, clean)]
        draft = replace(blocked, vector=vector, noise_std=total, information=information, clean=clean)
        exposures = information.exposures(total)
        return draft.saying(reasons=reasons, exposures=exposures, noise_std=added, warnings=warnings)

    def _estimated(self, client: BaseClient, empty: BatchInformation) -> BatchInformation:
        """Quickly, of this client's release."""
        advice, batch = "give the guard a prior (prior or prior_std) of data like these", empty.batch
        odd = odd_samples(self.prior, batch.inputs, batch.targets, advice)
        warnings = [*tight_note(self.prior, batch.inputs, batch.targets), *odd_note(empty.ids, odd)]
        information = self._estimator(client, empty).quick(empty)
        information.warnings = [*warnings, *information.warnings]
        if not information.num_assessed:
            raise GuardError(
                f"the budget of {self.policy.budget_seconds:g} s was over before a bound existed; raise budget_seconds"
                if self.policy.budget_seconds is not None
                else "not one product with the Hessian was made, so nothing can be claimed"
            )
        return information

    def _refine_undecided(self, information: BatchInformation, noise: float) -> None:
        estimator = self._estimator(self.client, information)
        for index, sample in enumerate(information.samples):
            if sample.information is not None:
                exposure = information.exposure(index, noise, len(information))
                if self.policy.undecided(exposure):
                    estimator.refine(information, index, noise)

    def _estimator(self, client: BaseClient, batch: BatchInformation) -> Estimator | JointEstimator:
        """An estimator of the review's client, or of the same one clipped."""
        failure = 1 - self.policy.confidence
        if batch.accounts is not None:
            # The failures of all rounds add up to what the policy allows: sum 1 / (t (t + 1)) = 1.
            rounds = 1 + max((account.rounds for account in batch.accounts.values()), default=0)
            failure /= rounds * (rounds + 1)
        # The first look, one at a clipped release, the further ones, and what is refined sample by sample, twice.
        failure /= 4 + len(FURTHER_LOOKS)
        if isinstance(client, JointClient):
            return JointEstimator(client, self.prior, self.policy, self.end, failure, len(batch))
        assert isinstance(client, Client)
        return Estimator(client, self.prior, self.policy, self.end, failure)


def _twins_note(information: BatchInformation) -> list[str]:
    """What is said of samples that count as one."""
    twins = sum(len(information.twins(index)) > 1 for index in range(len(information)))
    return [f"{twins} samples are copies, views or ids of another one and count together"] if twins else []


def _within_limits(information: BatchInformation) -> str:
    """What an allowed batch may be said to keep."""
    total, seen = len(information), information.num_assessed or len(information)
    if seen == total:
        return all_within(total)
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
