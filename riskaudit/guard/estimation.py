"""Estimates the Fisher information of a batch's samples: quickly for all, then as exactly as wanted for some."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch

from riskaudit.audit import AuditSettings
from riskaudit.audit.plan import choose_plan, fitting_samples
from riskaudit.audit.targets import carrying_targets
from riskaudit.errors import GuardError
from riskaudit.guard.client import Client
from riskaudit.guard.evidence import gather_evidence
from riskaudit.guard.information import LOST_NOTE, BatchInformation
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.inputs.discrete import are_sparse_codes
from riskaudit.jacobian import Jacobian
from riskaudit.linalg.krylov.tridiagonal import SLACK_ROUNDINGS
from riskaudit.policy import Policy
from riskaudit.priors import Prior
from riskaudit.release import Batch
from riskaudit.sensitivity import Clock, Concentration, Linearisation, few_products

# A product with H costs at most so many gradients of the batch (benchmarks/RESULTS.md), everything else of a review
# so many.
PRODUCT_GRADIENTS, OTHER_GRADIENTS = 7.0, 8.0
LEAST_PRODUCTS, MOST_PRODUCTS = 3, 32
# Products per sample without a bound on the cost.
DEFAULT_PRODUCTS = 7
# Samples whose time is measured before the budget is spent on the others.
FIRST_SAMPLES = 8
# Products per sample of the further looks at the samples that may decide.
FURTHER_LOOKS = (32, 128)
# The share of the time that is left which the samples of one go may take.
TIME_SHARE = 0.8
# Relative width of a refined interval where not all eigenvalues are affordable.
REFINED_PRECISION = 0.05


class Estimator:
    """Estimates the information of one client's batches.

    Args:
        client: its release.
        prior: what an attacker is taken to know.
        policy: limits of cost and time, and the confidence.
        end: when to stop, on the monotonic clock.
        failure: probability, over the whole batch, that some interval of one look misses.
    """

    def __init__(self, client: Client, prior: Prior, policy: Policy, end: float, failure: float) -> None:
        self.client, self.prior, self.policy, self.end, self.failure = client, prior, policy, end, failure
        self._looks = iter(FURTHER_LOOKS)

    @cached_property
    def _exact(self) -> Client:
        return self.client.exact()

    @property
    def products(self) -> int:
        """Products with H per sample that a review may make for a first answer."""
        if self.policy.max_gradients is None:
            return DEFAULT_PRODUCTS
        affordable = int((self.policy.max_gradients - OTHER_GRADIENTS) // PRODUCT_GRADIENTS)
        return max(LEAST_PRODUCTS, min(MOST_PRODUCTS, affordable))

    def quick(self, empty: BatchInformation) -> BatchInformation:
        """The information of as many samples as time allows, drawn at random where it does not allow all.

        Where there are accounts of a ledger, sketches take over their directions.
        """
        information, batch = replace(empty, samples=[replace(sample) for sample in empty.samples]), empty.batch
        shares, carriers = self.client.shares(batch), carrying_targets(batch.inputs, batch.targets)
        for index, sample in enumerate(information.samples):
            sample.share, sample.carries_input = None if shares is None else shares[index], carriers[index]
        information.sparse_codes = self.policy.sparse_codes == "block" and are_sparse_codes(batch.inputs)
        limited, sketched = math.isfinite(self.end), information.accounts is not None
        order = list(range(len(information)))
        if limited:
            secrets.SystemRandom().shuffle(order)
        width = self._width(batch)
        size = min(width, FIRST_SAMPLES) if limited else width
        while order and not self._is_late():
            indices, order = order[:size], order[size:]
            started = time.monotonic()
            self._look(information, indices, self.products, sketched)
            if limited:
                per_sample = (time.monotonic() - started) / len(indices)
                affordable = int(TIME_SHARE * (self.end - time.monotonic()) / max(per_sample, 1e-9))
                if affordable < 1:
                    break
                size = min(width, affordable)
        return information

    def narrow(self, information: BatchInformation, indices: list[int]) -> bool:
        """A further look at some samples, with more products than the last; False where there is none, or no time."""
        products = next(self._looks, None)
        if products is None or self._is_late():
            return False
        width = self._width(information.batch)
        for first in range(0, len(indices), width):
            if not self._is_late():
                self._look(information, indices[first : first + width], products, sketched=False)
        return True

    def refine(self, information: BatchInformation, index: int, noise_std: float) -> None:
        """Replace what is known of one sample by something tighter, if time is left.

        All eigenvalues where they are affordable, else an interval aimed at this noise.
        """
        client = self._exact
        if self._is_late():
            return
        sample = information.batch.select([index])
        batch = client.batch(sample.inputs, sample.targets)
        jacobian = client.jacobian(batch, information.sample_noise(noise_std, len(information), index))
        settings = AuditSettings(
            proxies=("posterior_rmse", "revealed_fraction"),
            precision=REFINED_PRECISION,
            confidence=1 - self.failure / len(information),
        )
        release = jacobian.release
        plan = choose_plan(settings, jacobian.shape[1], release.num_entries, 1, 1, release.device)
        clock = Clock(None if math.isinf(self.end) else max(0.0, self.end - time.monotonic()))
        linearisation = Linearisation(jacobian, [index], self.prior, plan, 0, clock, _probes(batch.inputs.flatten(1)))
        if linearisation.information is not None:
            information.samples[index].information = linearisation.information[0]
        information.products += linearisation.matvecs

    def _is_late(self) -> bool:
        return time.monotonic() >= self.end

    def _width(self, batch: Batch) -> int:
        """Samples that fit in memory at once."""
        return max(1, fitting_samples(self.client.sample_bytes(batch), batch.inputs.device))

    def _look(self, information: BatchInformation, indices: list[int], number: int, sketched: bool) -> None:
        """Estimate some samples by so many products each, in double precision where single precision tells nothing."""
        jacobian = self.client.jacobian(information.batch.select(indices), 0.0)
        slack = SLACK_ROUNDINGS * math.sqrt(jacobian.shape[1])
        is_lost = [slack * rounding >= 1 for rounding in jacobian.rounding]
        lost = [index for index, is_so in zip(indices, is_lost, strict=True) if is_so]
        if not lost:
            self._estimate(information, self.client, jacobian, indices, number, sketched)
            return
        rows = [row for row, is_so in enumerate(is_lost) if not is_so]
        if rows:
            held = [indices[row] for row in rows]
            self._estimate(information, self.client, jacobian.select(rows), held, number, sketched)
        part = information.batch.select(lost)
        try:
            exact = self._exact
            precise = exact.jacobian(exact.batch(part.inputs, part.targets), 0.0)
        except GuardError:
            raise
        except Exception:  # code of one precision only: what is not assessed is not safe
            information.warnings = [*information.warnings, LOST_NOTE]
            return
        # A product takes about twice as long.
        self._estimate(information, exact, precise, lost, max(1, number // 2), sketched)

    def _estimate(
        self,
        information: BatchInformation,
        client: Client,
        jacobian: Jacobian,
        indices: list[int],
        number: int,
        sketched: bool,
    ) -> None:
        """By products with the J of these samples."""
        part, samples = jacobian.batch, [information.samples[index] for index in indices]
        hessian, flat = jacobian.hessian(), part.inputs.flatten(1)
        prior, per_sample = self.prior.bind(part.targets, flat), self.failure / len(information)
        few = few_products(hessian, prior, number, per_sample, _probes(flat), self._is_late)
        information.products += few.products
        if few.products < len(samples) or (samples[0].information is not None and self._is_late()):
            # Not one product for everybody, so that no bound exists; or less than what is known already.
            return
        unexamined = [row for row, sample in enumerate(samples) if sample.evidence is None]
        if unexamined:
            whole = jacobian if len(unexamined) == len(samples) else None
            examined, spaces = part.select(unexamined), [few.spaces[row] for row in unexamined]
            evidence = gather_evidence(client, self.prior, examined, spaces, whole)
            for row, (new, key) in zip(unexamined, evidence, strict=True):
                samples[row].evidence, samples[row].evidence_key = new, key
        for sample, of_sample, space in zip(samples, few.information, few.spaces, strict=True):
            sample.information, sample.concentration = of_sample, Concentration.of(space)[0]
            if sketched:
                sample.sketch(space)
        if sketched:
            self._project(information, indices, flat, hessian.matmat)

    def _project(
        self,
        information: BatchInformation,
        indices: list[int],
        flat: torch.Tensor,
        products: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Q H Q^T in the directions that the ledger keeps of samples that it knows."""
        accounts, samples = information.accounts or {}, [information.samples[index] for index in indices]
        directions = {
            row: accounts[sample.id].directions for row, sample in enumerate(samples) if sample.id in accounts
        }
        if not directions:
            return
        most = max(len(rows) for rows in directions.values())
        columns = flat.new_zeros(len(indices), flat.shape[1], most)
        for row, rows in directions.items():
            columns[row, :, : len(rows)] = torch.as_tensor(rows.T).to(flat)
        images = products(columns)
        information.products += most * len(indices)
        for row, rows in directions.items():
            count = len(rows)
            core = (columns[row, :, :count].mT @ images[row, :, :count]).double().cpu().numpy()
            samples[row].directions, samples[row].core = rows, (core + core.T) / 2


def _probes(like: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Draws standard normal vectors [B, d] that nobody can foresee, such as whoever chose the model's weights."""
    noise = SecureNoise("gaussian", 1.0)
    return lambda _: noise.draw(like.numel()).reshape(like.shape).to(like)
