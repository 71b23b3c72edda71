"""What the samples of a batch reveal at any noise, read off the Fisher information that was estimated of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from riskaudit.audit.targets import CARRIED
from riskaudit.errors import GuardError
from riskaudit.guard.batches import NamedBatch
from riskaudit.guard.evidence import LastingEvidence
from riskaudit.guard.ledger import Account
from riskaudit.inputs.discrete import SPARSE_CODES
from riskaudit.linalg import KrylovSpace
from riskaudit.policy import Exposure, Range, concentrated
from riskaudit.release import Batch
from riskaudit.sensitivity import Concentration, Information, reached_note
from riskaudit.sensitivity.information import BracketedInformation, ExactInformation

UNCHECKED = "the derivative was not held against the gradient itself"
# Fisher information of a release without noise, as large as sums of it stay finite.
LARGEST_INFORMATION = 1e100


@dataclass(frozen=True, eq=False)
class Sketch:
    """The Krylov space of one sample's first products, for a ledger; nothing of the batch is kept alive.

    Attributes:
        directions: Q, [k, d].
        core: Q H Q^T, [k, k].
    """

    directions: np.ndarray
    core: np.ndarray

    @classmethod
    def of(cls, space: KrylovSpace) -> Sketch:
        """Of one sample's Lanczos iteration."""
        tridiagonal = space.tridiagonal
        count = tridiagonal.num_products
        beside = tridiagonal.off_diagonal[: count - 1] if count else np.zeros(0)
        core = np.diag(tridiagonal.diagonal[:count]) + np.diag(beside, 1) + np.diag(beside, -1)
        return cls(space.basis[:count].double().cpu().numpy(), core)


@dataclass(eq=False)
class SampleInformation:
    """What is known of one sample; what is None was not worked out.

    Attributes:
        information: Fisher information of its own release.
        sketch: of the same, where a ledger wants it.
        evidence: for and against its derivative.
        concentration: how many coordinates of the input the release depends on.
        share: of its gradient in what leaves; None where that is one over the number of samples.
        carries_input: whether its target gives its input away.
    """

    information: Information | None = None
    sketch: Sketch | None = None
    evidence: LastingEvidence | None = None
    concentration: Concentration | None = None
    share: float | None = None
    carries_input: bool = False


@dataclass(eq=False)
class BatchInformation:
    """What is known of a batch.

    Attributes:
        batch: the samples.
        samples: what is known of each.
        accounts: of a ledger, by id; None without one.
        summed: whether the sum over the samples leaves, not their mean.
        sparse_codes: whether the inputs are codes of which the policy doesn't take the numbers.
        products: with H, over all samples.
        warnings: sentences about the whole batch for the decision.
    """

    batch: NamedBatch
    samples: list[SampleInformation]
    accounts: dict[str, Account] | None = None
    summed: bool = False
    sparse_codes: bool = False
    products: int = 0
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_assessed(self) -> int:
        """Samples of which there is a number."""
        return sum(sample.information is not None for sample in self.samples)

    def exposures(self, noise_std: float) -> list[Exposure]:
        """Of every sample, if the mean (or sum) over all leaves with noise of this Fisher-equivalent std per entry."""
        return [self.exposure(index, noise_std, len(self)) for index in range(len(self))]

    def exposure(self, index: int, noise_std: float, batch_size: int) -> Exposure:
        """Of one sample among ``batch_size`` whose mean (or sum) leaves; without noise everything is revealed."""
        identifier, group = self.batch.ids[index], self.batch.groups[index]
        if not noise_std:
            total = None if self.accounts is None else Range(0.0, 1.0)
            return Exposure(identifier, group, Range(1.0, 1.0), Range(0.0, 0.0), total)
        information = self.samples[index].information
        twins = [self.samples[twin] for twin in self.batch.twins(index)]
        every = [twin.information for twin in twins if twin.information is not None]
        if information is None or len(every) < len(twins) or self.doubt(index, noise_std, batch_size) is not None:
            return Exposure(identifier, group)
        sigma = self.sample_noise(noise_std, batch_size, index)
        # What any of them reveals, it reveals of the same person.
        most = max(twin.revealed(sigma).high for twin in every)
        least_error = min(twin.error(sigma).low for twin in every)
        revealed = Range(information.revealed(sigma).low, most)
        error = Range(least_error, information.error(sigma).high)
        # Limits are averages over the coordinates; those that nothing depends on would hide the others.
        factor = max(1.0 if twin.concentration is None else twin.concentration.factor for twin in twins)
        limits = (revealed, error) if factor == 1 else concentrated(revealed, factor, information.tau)
        total = None
        if self.accounts is not None:
            account = self.account(index, noise_std, batch_size)
            total = Range(0.0, min(1.0, factor * account.revealed))
        return Exposure(identifier, group, *limits, total)

    def doubt(self, index: int, noise_std: float, batch_size: int) -> str | None:
        """Why nothing is claimed of a sample, or of another one of the same person, if that is so."""
        # All of them are asked: evidence that is reason for doubt is remembered when it is.
        doubts = [self._sample_doubt(twin, noise_std, batch_size) for twin in self.batch.twins(index)]
        return next((doubt for doubt in doubts if doubt is not None), None)

    def _sample_doubt(self, index: int, noise_std: float, batch_size: int) -> str | None:
        sample = self.samples[index]
        information, evidence = sample.information, sample.evidence
        if information is None or not noise_std:
            return None
        if sample.carries_input:
            return CARRIED
        if self.sparse_codes:
            return f'{SPARSE_CODES}; sparse_codes = "accept" in the policy takes the numbers as they are'
        if evidence is None:
            return UNCHECKED
        sigma = self.sample_noise(noise_std, batch_size, index)
        error = information.error(sigma).low if evidence.quotients else None
        return evidence.doubt(sigma, error, information.revealed(sigma).high if evidence.hidden else None)

    def account(self, index: int, noise_std: float, batch_size: int) -> Account:
        """A sample's account once the mean (or sum) over ``batch_size`` samples has left with this noise.

        Raises:
            GuardError: it was not assessed, or the ledger counts samples of another kind under its id.
        """
        information, sketch = self.samples[index].information, self.samples[index].sketch
        if information is None or sketch is None:
            raise GuardError("the ledger can't count samples that were not assessed; raise the budget")
        dimension = self.batch.batch.inputs[index].numel()
        before = (self.accounts or {}).get(self.batch.ids[index])
        if before is None:
            before = Account.empty(dimension, information.tau, sketch.directions)
        if (before.tau, before.dimension) != (information.tau, dimension):
            raise GuardError(
                f"the ledger counts samples of {before.dimension} inputs under a prior of std {before.tau:g}, and this "
                f"one has {dimension} and {information.tau:g}; use a ledger of its own"
            )
        if not noise_std or self.doubt(index, noise_std, batch_size) is not None:
            return before.after(dimension, math.inf, LARGEST_INFORMATION * np.eye(len(sketch.core)))
        sigma = self.sample_noise(noise_std, batch_size, index)
        precision = sigma**-2
        effective_dimension = information.revealed(sigma).high * dimension
        return before.after(effective_dimension, _trace(information) * precision, sketch.core * precision)

    def sample_noise(self, noise_std: float, batch_size: int, index: int) -> float:
        """Std of the noise that one sample's own release has, where ``batch_size`` share what leaves with this one.

        c copies of it have the same Jacobian, so that their sum has c times it: 1 / c of the noise.
        """
        twins = self.batch.twins(index)
        shares = [share for twin in twins if (share := self.samples[twin].share) is not None]
        if shares:
            return noise_std / sum(shares)
        return (noise_std if self.summed else batch_size * noise_std) / len(twins)

    def select(self, indices: Sequence[int]) -> BatchInformation:
        """Of some of the samples; the products stay those of all. Changing it doesn't change this one."""
        samples = [replace(self.samples[index]) for index in indices]
        return replace(self, batch=self.batch.select(indices), samples=samples)

    def under(self, batch: NamedBatch, accounts: dict[str, Account] | None) -> BatchInformation | None:
        """The same of a batch whose samples have other names by now; None where it doesn't hold for that.

        Samples have to count together as they did, since copies have the numbers of all. With a ledger the ids have to
        be the same, and sketches in the directions that the ledger has by now.
        """
        if not batch.counts_like(self.batch) or (accounts is not None and self.batch.ids != batch.ids):
            return None
        for sample, identifier in zip(self.samples, batch.ids, strict=True):
            account = None if accounts is None else accounts.get(identifier)
            if account is None:
                continue
            if sample.sketch is None or not np.array_equal(sample.sketch.directions, account.directions):
                return None
        return replace(self, batch=replace(self.batch, ids=batch.ids), accounts=accounts)

    def concentration_note(self, exposures: Sequence[Exposure]) -> list[str]:
        """That numbers are averages over some of the coordinates, where the release depends on fewer than half."""
        pairs = [
            (sample.concentration, exposure.revealed.high)
            for sample, exposure in zip(self.samples, exposures, strict=True)
            if sample.concentration is not None and exposure.revealed is not None
        ]
        return reached_note(pairs, len(self), "limits are held against that average")

    def is_of(self, batch: Batch) -> bool:
        """Whether these are the samples that were assessed."""
        known = self.batch.batch
        return torch.equal(known.inputs, batch.inputs) and torch.equal(known.targets, batch.targets)


def _trace(information: Information) -> float:
    """Upper end of tr H."""
    if isinstance(information, ExactInformation):
        return float(information.eigenvalues.sum())
    assert isinstance(information, BracketedInformation)
    return information.traces.trace.high
