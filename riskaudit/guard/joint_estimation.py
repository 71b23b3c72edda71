"""Estimates the information of samples that leave together, by random pulls that tell of all of them at once."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from riskaudit.audit import AuditSettings
from riskaudit.audit.credibility import LIKELY_FACTOR, differences, likely_steps
from riskaudit.audit.evidence import Evidence
from riskaudit.audit.plan import choose_plan
from riskaudit.audit.targets import carrying_targets
from riskaudit.audit.uploads import GROUPS, growth_alone, upload_rounding
from riskaudit.guard.identifiers import sample_digest
from riskaudit.guard.information import LOST_NOTE, BatchInformation
from riskaudit.guard.joint_client import JointClient
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.outsider import TOO_FEW, outsider_information
from riskaudit.inputs.discrete import are_sparse_codes
from riskaudit.jacobian import Jacobian, loss_rounding
from riskaudit.jacobian.distinct import of_distinct_inputs
from riskaudit.jacobian.informed import InformedJacobian
from riskaudit.jacobian.unrolled import PULLED_ENTRIES
from riskaudit.linalg.krylov.tridiagonal import SLACK_ROUNDINGS
from riskaudit.policy import Policy
from riskaudit.priors import Prior, in_uploads
from riskaudit.sensitivity import Clock, Concentration, Information, Linearisation
from riskaudit.sensitivity.pulled import pulled_information

# Costs in trainings of the round (benchmarks/RESULTS.md): of a pull beside others, of what comes once for all that are
# worked out at a time, and of everything else, some of which is as much as so many steps, however few the round has.
PULL, PULLS_TOGETHER, OTHER, OTHER_STEPS = 1.4, 1.3, 2.8, 40
LEAST_PULLS, MOST_PULLS, DEFAULT_PULLS = 2, 64, 24
# Of a release with no more entries, so many pulls at least: beside each other they take little longer than one, and of
# two the upper end is now and then thousands of times the truth where the input is small too.
FEW_ENTRIES, PULLS_OF_FEW = 2**13, 8
# Pulls of the further looks.
FURTHER_PULLS = (24, 96)
# How near to the prior's std an error is that noise can reach.
EDGE = 1e-3
# Relative width of a refined interval.
REFINED_PRECISION = 0.05


class JointEstimator:
    """Estimates the information of one client's upload.

    Args:
        client: its release.
        prior: what an attacker is taken to know.
        policy: limits of cost and time.
        end: when to stop, on the monotonic clock.
        failure: probability, over the whole upload, that some interval of one look misses.
        num_samples: of the upload.
    """

    def __init__(
        self, client: JointClient, prior: Prior, policy: Policy, end: float, failure: float, num_samples: int
    ) -> None:
        self.client, self.prior, self.policy, self.end, self.failure = client, prior, policy, end, failure
        self._size = num_samples
        self._looks = iter(FURTHER_PULLS)

    @property
    def pulls(self) -> int:
        """Pulls that a first answer may make."""
        if self.policy.max_trainings is None:
            return DEFAULT_PULLS
        together, training = self._together, self.client.spec.training
        steps = 1 if training is None else len(training.mini_batches(self._size))
        left = self.policy.max_trainings - OTHER - OTHER_STEPS / steps
        affordable = (left - PULLS_TOGETHER) / PULL if together > 1 else left / (PULL + PULLS_TOGETHER)
        least = PULLS_OF_FEW if self.client.release.num_entries <= FEW_ENTRIES else LEAST_PULLS
        # Where the outsider counts, the others' numbers are ends of last resort.
        most = DEFAULT_PULLS if self.policy.attacker == "outsider" else MOST_PULLS
        return max(least, min(most, int(affordable)))

    @property
    def _together(self) -> int:
        return max(1, PULLED_ENTRIES // self.client.release.num_entries)

    def quick(self, empty: BatchInformation) -> BatchInformation:
        """The information of all samples, or of none where time is over."""
        information, batch = replace(empty, samples=[replace(sample) for sample in empty.samples]), empty.batch
        carriers, information.tied = carrying_targets(batch.inputs, batch.targets), True
        information.sparse_codes = self.policy.sparse_codes == "block" and are_sparse_codes(batch.inputs)
        if self._is_late():
            return information
        self.client.check_code(batch)
        jacobian = self.client.jacobian(batch)
        pulled = self.client.pulled = self._pull(jacobian, self.pulls)
        evidence = self._evidence(information, jacobian, pulled)
        setting = self.client.state + self.prior.info().model_dump_json().encode()
        for sample, carries, pair in zip(information.samples, carriers, batch.pairs(), strict=True):
            sample.carries_input, sample.evidence = carries, evidence
            sample.evidence_key = hashlib.sha256(setting + sample_digest(*pair)).digest()
        self._tell(information, None, pulled)
        if self.policy.attacker == "outsider":
            self._tell_of_outsider(information)
        shown = self._of_copies(information, pulled)
        for index, sample in enumerate(information.samples):
            sample.concentration = Concentration.of_pulls(shown[index])
            if information.accounts is not None:
                self._sketch(information, index)
        return information

    def narrow(self, information: BatchInformation, indices: list[int]) -> bool:
        """A further look at all samples, with more pulls; False where there is none, or no time."""
        number, earlier = next(self._looks, None), self.client.pulled
        if number is None or self._is_late() or earlier is None:
            return False
        more = self._pull(self.client.jacobian(information.batch), number)
        self._tell(information, earlier, more)
        self.client.pulled = torch.cat([earlier, more], dim=-1)
        return True

    def refine(self, information: BatchInformation, index: int, noise_std: float) -> None:
        """Aim an interval at this noise for one sample, where nothing bounds the cost: forward derivatives are dear."""
        if self.policy.max_trainings is not None or self.policy.attacker == "outsider" or self._is_late():
            return
        std = information.sample_noise(noise_std, len(information), index)
        noisy = self.client.jacobian(information.batch, std)
        settings = AuditSettings(
            proxies=("posterior_rmse", "revealed_fraction"),
            precision=REFINED_PRECISION,
            confidence=1 - self.failure / len(information),
        )
        distinct, owners = of_distinct_inputs(noisy)
        alone = InformedJacobian(distinct, [owners[index]])
        release = self.client.release
        plan = choose_plan(settings, alone.shape[1], release.num_entries, 1, 1, release.device)
        clock = Clock(None if math.isinf(self.end) else max(0.0, self.end - time.monotonic()))
        draw = SecureNoise("gaussian", 1.0)
        like = alone.batch.inputs.flatten(1)
        linearisation = Linearisation(
            alone, [index], self.prior, plan, 0, clock, lambda _: draw.draw(like.numel()).reshape(like.shape).to(like)
        )
        if linearisation.information is not None:
            for copy in information.copies(index):
                information.samples[copy].information = linearisation.information[0]
        information.products += linearisation.matvecs

    def _is_late(self) -> bool:
        return time.monotonic() >= self.end

    def _pull(self, jacobian: Jacobian, number: int) -> Tensor:
        """J_j^T u of every sample for standard normal u that nobody can foresee, [n, d, number]."""
        count = jacobian.shape[0]
        # Unforeseen is enough here: nothing that leaves is made of them.
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        parts = []
        while number:
            columns = min(number, self._together)
            # Column by column in memory, as they are worked on.
            drawn = torch.randn(columns, count, generator=generator, dtype=jacobian.dtype).mT[None]
            parts.append(jacobian.rmatmat(drawn.to(jacobian.device))[0].detach())
            number -= columns
        return torch.cat(parts, dim=-1).reshape(len(jacobian.batch), -1, sum(part.shape[-1] for part in parts))

    def _tell(self, information: BatchInformation, earlier: Tensor | None, pulled: Tensor) -> None:
        batch = information.batch
        prior = self.prior.bind(batch.targets, batch.inputs.flatten(1))
        pulled = self._of_copies(information, pulled)
        earlier = None if earlier is None else self._of_copies(information, earlier)
        rounding = self._rounding(information)
        told = pulled_information(pulled, earlier, prior, self.failure / len(information), rounding)
        for sample, each, lost in zip(information.samples, told, rounding, strict=True):
            # Of a loss too small for this precision the derivative may come out as 0, which is no bound.
            sample.information = each if lost < 1 else None
        if max(rounding) >= 1:
            information.warnings = [*information.warnings, LOST_NOTE]
        information.products += pulled.shape[-1] * len(information)

    def _tell_of_outsider(self, information: BatchInformation) -> None:
        """What who knows none of the other samples learns of each, where trainings are left for it."""
        told = [sample.information for sample in information.samples]
        known = [each for each in told if each is not None]
        std = self.client.noise_std or self._reaching(known)
        distinct, owners = of_distinct_inputs(self.client.jacobian(information.batch, std))
        firsts = [owners.index(block) for block in range(len(distinct.batch))]
        left = None
        if self.policy.max_trainings is not None:
            left = self.policy.max_trainings - OTHER - PULLS_TOGETHER - PULL * self.pulls
        found, products = outsider_information(
            distinct, self.prior, [known[first] for first in firsts], left, self.failure, self.end
        )
        information.products += products
        if found is None:
            information.warnings = [*information.warnings, TOO_FEW]
            return
        for sample, block in zip(information.samples, owners, strict=True):
            sample.outsider = found[block]

    def _reaching(self, known: Sequence[Information]) -> float:
        """Noise at which limits begin to hold for who knows the others, of an update that has none: std per entry."""
        share = 1.0 if self.policy.max_revealed is None else self.policy.max_revealed
        stds = []
        for each in known:
            error = max(each.tau * math.sqrt(max(0.0, 1 - share)), self.policy.min_rmse or 0.0)
            stds.append(each.noise_for(min(error, (1 - EDGE) * each.tau)).std or 0.0)
        return max(stds) or 1.0

    def _rounding(self, information: BatchInformation) -> list[float]:
        """|E|_F / |J_j|_F that is allowed for, of every sample, [n]; of copies the largest."""
        batch = information.batch
        losses = self.client.losses(batch).detach()
        if losses.dtype == torch.float64:
            return [0.0] * len(information)
        rounding = (SLACK_ROUNDINGS * math.sqrt(batch.inputs[0].numel()) * loss_rounding(losses)).tolist()
        return [max(rounding[copy] for copy in information.copies(index)) for index in range(len(information))]

    def _of_copies(self, information: BatchInformation, pulled: Tensor) -> Tensor:
        """Pulls [n, d, k] of inputs with all their copies: the sum of the copies', for each of them."""
        copies = [information.copies(index) for index in range(len(information))]
        if all(len(own) == 1 for own in copies):
            return pulled
        return torch.stack([pulled[own].sum(0) for own in copies])

    def _evidence(self, information: BatchInformation, jacobian: Jacobian, pulled: Tensor) -> Evidence:
        """For or against the derivative: what a step of all samples, or of some of them alone, to other inputs does.

        Raises:
            GuardError: code whose derivative isn't one, seen in double precision on one drawn mini-batch.
        """
        client, batch = self.client, information.batch
        upload = client.upload(batch)
        flat = batch.inputs.flatten(1)
        prior = in_uploads(self.prior.bind(batch.targets, flat), len(batch))
        drawn = SecureNoise("gaussian", 1.0).draw(flat.numel()).reshape(1, -1)
        step = likely_steps(flat.reshape(1, -1), prior, drawn.to(flat))[1].reshape(flat.shape)
        if secrets.randbelow(2) and len(batch) > 1:
            # What one sample hides may be little beside what the others show.
            moving = torch.tensor(secrets.SystemRandom().sample(range(len(batch)), -(-len(batch) // GROUPS)))
            step = step * torch.isin(torch.arange(len(batch)), moving)[:, None].to(step)
        before = jacobian.mean().detach()
        moved = step.reshape(batch.inputs.shape)
        after = client.mean_of(upload.with_inputs(batch.inputs + moved))
        change = after - before
        # u . J v is normal with the variance |J v|^2 for every u. Where there are few u, all of them may happen to be
        # small; the samples' own parts hardly are then.
        along = torch.einsum("ndk,nd->nk", pulled.double(), step.double())
        predicted = torch.maximum(along.sum(0).norm(), along.norm())[None] / math.sqrt(along.shape[1])
        norms = before.norm(dim=1).double()
        rounding = upload_rounding(client.release, norms, client.losses(batch), upload)
        allowed = LIKELY_FACTOR * predicted + rounding
        likely = differences(1.0, change.norm(dim=1).double(), allowed)
        if any(one.counts(0.0, flat.shape[1]) for one in likely):
            # Growth is worked out, for a training or two, where there is a doubt that it may explain: what leaves
            # changes by no more than the derivative says otherwise.
            change = change - growth_alone(client.release, upload, moved, before, after)
            likely = differences(1.0, change.norm(dim=1).double(), allowed)
        return Evidence(dimension=flat.shape[1], tiny=(), likely=tuple(likely))

    def _sketch(self, information: BatchInformation, index: int) -> None:
        """What a ledger keeps of one sample: no directions of its own, since products with H would cost too much.

        In directions that it has already this round counts with all of its trace, in each of them and beside them.
        """
        sample = information.samples[index]
        account = (information.accounts or {}).get(sample.id)
        dimension = information.batch.inputs[index].numel()
        directions = np.zeros((0, dimension)) if account is None else account.directions
        trace = None if sample.information is None else sample.information.trace
        assert trace is not None, "a ledger needs an isotropic prior"
        sample.directions, sample.core = directions, trace.high * np.eye(len(directions))
        sample.core_is_bound = True
