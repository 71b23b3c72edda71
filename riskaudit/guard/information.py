"""What the samples of a batch reveal at any noise, read off the Fisher information that was estimated of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from riskaudit.audit.evidence import Evidence
from riskaudit.audit.targets import CARRIED
from riskaudit.errors import GuardError
from riskaudit.guard.evidence import lasting_doubt
from riskaudit.guard.ledger import Account
from riskaudit.inputs.discrete import SPARSE_CODES
from riskaudit.inputs.duplicates import duplicate_labels
from riskaudit.linalg import KrylovSpace
from riskaudit.policy import Exposure, Range, concentrated
from riskaudit.release import Batch
from riskaudit.release.copies import first_copies
from riskaudit.sensitivity import Concentration, Information, reached_note

UNCHECKED = "the derivative was not held against the gradient itself"
LOST_NOTE = (
    "the loss of some samples is too small for float32 to tell their gradient from 0: nothing is claimed of these "
    "(dtype=torch.float64 resolves them)"
)
# Fisher information of a release without noise, as large as sums of it stay finite.
LARGEST_INFORMATION = 1e100


@dataclass(eq=False)
class SampleInformation:
    """What is known of one sample; what is None was not worked out.

    Attributes:
        id: hidden name.
        group: its class; None where targets aren't class numbers.
        label: a number that is the same for samples of one person: copies, views, and samples of one id.
        information: Fisher information of its own release, or of all others' with these known.
        outsider: of who knows none of the others, where the policy goes by that one.
        directions: Q of its Krylov space [k, d], where a ledger wants it.
        core: Q H Q^T [k, k], likewise.
        core_is_bound: whether that is an upper end only, beside which all of the trace may lie.
        evidence: for and against its derivative, of this review.
        evidence_key: of earlier evidence at the same sample, model, loss, release and prior.
        concentration: how many coordinates of the input the release depends on.
        share: of its gradient in what leaves; None where that is one over the number of samples.
        carries_input: whether its target gives its input away.
    """

    id: str
    group: str | None
    label: int
    information: Information | None = None
    outsider: Information | None = None
    directions: np.ndarray | None = None
    core: np.ndarray | None = None
    core_is_bound: bool = False
    evidence: Evidence | None = None
    evidence_key: bytes = b""
    concentration: Concentration | None = None
    share: float | None = None
    carries_input: bool = False

    def sketch(self, space: KrylovSpace) -> None:
        """Take over a Krylov space; nothing of the batch is kept alive."""
        tridiagonal = space.tridiagonal
        count = tridiagonal.num_products
        beside = tridiagonal.off_diagonal[: count - 1] if count else np.zeros(0)
        self.directions = space.basis[:count].double().cpu().numpy()
        self.core = np.diag(tridiagonal.diagonal[:count]) + np.diag(beside, 1) + np.diag(beside, -1)


@dataclass(eq=False)
class BatchInformation:
    """What is known of a batch.

    Attributes:
        batch: the samples.
        samples: what is known of each.
        accounts: of a ledger, by id; None without one.
        summed: whether the sum over the samples leaves, not their mean.
        tied: whether what is known of each sample is of its input with all its copies, not of one of them.
        sparse_codes: whether the inputs are codes of which the policy doesn't take the numbers.
        products: with H, over all samples.
        warnings: sentences about the whole batch for the decision.
    """

    batch: Batch
    samples: list[SampleInformation]
    accounts: dict[str, Account] | None = None
    summed: bool = False
    tied: bool = False
    sparse_codes: bool = False
    products: int = 0
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls, batch: Batch, inputs: Tensor, ids: list[str], summed: bool) -> BatchInformation:
        """A batch before anything was worked out; inputs are as they were handed in."""
        classes = batch.targets.ndim == 1 and not batch.targets.is_floating_point()
        groups = [str(target) for target in batch.targets.tolist()] if classes else [None] * len(batch)
        rows = zip(ids, groups, duplicate_labels(inputs, ids), strict=True)
        return cls(batch, [SampleInformation(*row) for row in rows], summed=summed)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ids(self) -> list[str]:
        """Hidden names of all samples."""
        return [sample.id for sample in self.samples]

    @property
    def num_assessed(self) -> int:
        """Samples of which there is a number."""
        return sum(sample.information is not None for sample in self.samples)

    @cached_property
    def _by_label(self) -> dict[int, list[int]]:
        by_label: dict[int, list[int]] = {}
        for index, sample in enumerate(self.samples):
            by_label.setdefault(sample.label, []).append(index)
        return by_label

    def twins(self, index: int) -> list[int]:
        """Indices of all samples of the person that one sample is of, its own among them."""
        return self._by_label[self.samples[index].label]

    @cached_property
    def _by_input(self) -> list[list[int]]:
        """For each sample the indices of all samples with its input."""
        firsts = first_copies(replace(self.batch, upload_size=max(1, len(self.batch)), numbers=None))
        groups: dict[int, list[int]] = {}
        for index, first in enumerate(firsts[0] if firsts else []):
            groups.setdefault(first, []).append(index)
        return [groups[first] for first in (firsts[0] if firsts else [])]

    def copies(self, index: int) -> list[int]:
        """Indices of all samples with the very input of one, its own among them, whatever their targets are."""
        return self._by_input[index]

    @cached_property
    def _differing_copies(self) -> list[list[int]]:
        """The copies of each sample where their targets differ, and each has a Jacobian of its own; else none."""
        targets = self.batch.targets
        return [
            [] if self.tied or len(copies) == 1 or bool((targets[copies] == targets[copies[:1]]).all()) else copies
            for copies in self._by_input
        ]

    def exposures(self, noise_std: float) -> list[Exposure]:
        """Exposures of all, if the mean (or sum) over all leaves with noise of this Fisher-equivalent std per entry."""
        return [self.exposure(index, noise_std, len(self)) for index in range(len(self))]

    def exposure(self, index: int, noise_std: float, batch_size: int) -> Exposure:
        """What one sample reveals among ``batch_size`` whose mean (or sum) leaves; without noise everything."""
        sample = self.samples[index]
        if not noise_std:
            total = None if self.accounts is None else Range(0.0, 1.0)
            return Exposure(sample.id, sample.group, Range(1.0, 1.0), Range(0.0, 0.0), total)
        twins = [self.samples[twin] for twin in self.twins(index)]
        assessed = [twin.information for twin in twins if twin.information is not None]
        information = sample.information
        if information is None or len(assessed) < len(twins) or self.doubt(index, noise_std, batch_size) is not None:
            return Exposure(sample.id, sample.group)
        sigma = self.sample_noise(noise_std, batch_size, index)
        # What any of them reveals, it reveals of the same person.
        high = max(twin.revealed(sigma).high for twin in assessed)
        least = min(twin.error(sigma).low for twin in assessed)
        for twin in self.twins(index):
            together = self._revealed_by_copies(twin, noise_std, batch_size)
            if together > high:
                high, least = together, information.tau * math.sqrt(1 - together)
        revealed = Range(information.revealed(sigma).low, high)
        error = Range(least, information.error(sigma).high)
        # Limits are averages over the coordinates; those that nothing depends on would hide the others.
        factor = max(1.0 if twin.concentration is None else twin.concentration.factor for twin in twins)
        limited: tuple[Range | None, Range | None] = (revealed, error)
        limited = limited if factor == 1 else concentrated(revealed, factor, information.tau)
        total = None
        if self.accounts is not None:
            account = self.account(index, noise_std, batch_size)
            total = Range(0.0, min(1.0, factor * account.revealed))
        if sample.outsider is None:
            return Exposure(sample.id, sample.group, *limited, total)
        outside = limited
        if len(twins) == len(self.copies(index)):
            # Views of one sample that aren't equal are told apart nowhere but here: the informed numbers count.
            found, left = sample.outsider.revealed(sigma), sample.outsider.error(sigma)
            outside = Range(found.low, found.high), Range(left.low, left.high)
            if factor != 1:
                outside = concentrated(outside[0], factor, information.tau)
        return Exposure(sample.id, sample.group, *outside, total, *limited)

    def _revealed_by_copies(self, index: int, noise_std: float, batch_size: int) -> float:
        """What copies with different targets reveal of their one input at most; 0 where there are none.

        Their c Jacobians add up: (sum of J_i)^T (sum of J_i) is at most c times the sum of J_i^T J_i. The trace of a
        concave function of a sum is at most the sum of the traces (Rotfel'd).
        """
        copies, total = self._differing_copies[index], 0.0
        for copy in copies:
            information, noise = self.samples[copy].information, self._own_noise(noise_std, batch_size, copy)
            if information is not None and math.isfinite(noise):
                noise /= math.sqrt(len(copies))
                total += information.revealed(noise).high
        return min(1.0, total)

    def doubt(self, index: int, noise_std: float, batch_size: int) -> str | None:
        """Why nothing is claimed of a sample, or of another one of the same person, if that is so."""
        # All of them are asked: evidence that is reason for doubt is remembered when it is.
        doubts = [self._sample_doubt(twin, noise_std, batch_size) for twin in self.twins(index)]
        return next((doubt for doubt in doubts if doubt is not None), None)

    def _sample_doubt(self, index: int, noise_std: float, batch_size: int) -> str | None:
        sample = self.samples[index]
        information = sample.information
        if information is None or not noise_std:
            return None
        if sample.carries_input:
            return CARRIED
        if self.sparse_codes:
            return f'{SPARSE_CODES}; sparse_codes = "accept" in the policy takes the numbers as they are'
        if sample.evidence is None:
            return UNCHECKED
        sigma = self.sample_noise(noise_std, batch_size, index)
        return lasting_doubt(sample.evidence, sample.evidence_key, information, sigma)

    def account(self, index: int, noise_std: float, batch_size: int) -> Account:
        """A sample's account once the mean (or sum) over ``batch_size`` samples has left with this noise.

        Raises:
            GuardError: it was not assessed, or the ledger counts samples of another kind under its id.
        """
        sample = self.samples[index]
        information, directions, core = sample.information, sample.directions, sample.core
        if information is None or directions is None or core is None:
            raise GuardError("the ledger can't count samples that were not assessed; raise the budget")
        dimension = self.batch.inputs[index].numel()
        before = (self.accounts or {}).get(sample.id)
        if before is None:
            before = Account.empty(dimension, information.tau, directions)
        if (before.tau, before.dimension) != (information.tau, dimension):
            raise GuardError(
                f"the ledger counts samples of {before.dimension} inputs under a prior of std {before.tau:g}, and this "
                f"one has {dimension} and {information.tau:g}; use a ledger of its own"
            )
        if not noise_std or self.doubt(index, noise_std, batch_size) is not None:
            return before.after(dimension, math.inf, LARGEST_INFORMATION * np.eye(len(core)))
        sigma = self.sample_noise(noise_std, batch_size, index)
        precision = sigma**-2
        effective_dimension = information.revealed(sigma).high * dimension
        trace = information.trace
        assert trace is not None, "a ledger needs an isotropic prior"
        copies = self._differing_copies[index]
        if copies:
            return before.after(*self._sum_of_copies(copies, noise_std, batch_size, len(core)))
        beside = float(np.trace(core)) if sample.core_is_bound else 0.0
        return before.after(effective_dimension, (trace.high + beside) * precision, core * precision)

    def _sum_of_copies(
        self, copies: list[int], noise_std: float, batch_size: int, count: int
    ) -> tuple[float, float, np.ndarray]:
        """What `Account.after` takes of copies with different targets: bounds, as in `_revealed_by_copies`."""
        traces = [(self._own_noise(noise_std, batch_size, copy), self.samples[copy].information) for copy in copies]
        total = 0.0
        for noise, information in traces:
            trace = None if information is None else information.trace
            total += LARGEST_INFORMATION if trace is None else len(copies) * trace.high / noise**2
        dimension = self.batch.inputs[copies[0]].numel()
        revealed = self._revealed_by_copies(copies[0], noise_std, batch_size)
        return revealed * dimension, (1 + count) * total, total * np.eye(count)

    def sample_noise(self, noise_std: float, batch_size: int, index: int) -> float:
        """Std of the noise that one sample's own release has, where ``batch_size`` share what leaves with this one.

        c copies of it have the same Jacobian, so that their sum has c times it: 1 / c of the noise. Where that sum is
        what is known of each, only others that are taken for copies are still to be counted.
        """
        twins = self.twins(index)
        shares = [share for twin in twins if (share := self.samples[twin].share) is not None]
        if shares:
            return noise_std / sum(shares)
        noise = self._own_noise(noise_std, batch_size, index) / len(twins)
        return noise * len(self.copies(index)) if self.tied else noise

    def _own_noise(self, noise_std: float, batch_size: int, index: int) -> float:
        """Of one sample's own release, were none of the others a copy of it."""
        share = self.samples[index].share
        if share is not None:
            return noise_std / share if share else math.inf
        return noise_std if self.summed else batch_size * noise_std

    def select(self, indices: Sequence[int]) -> BatchInformation:
        """A copy for some of the samples; the products stay those of all."""
        samples = [replace(self.samples[index]) for index in indices]
        return replace(self, batch=self.batch.select(list(indices)), samples=samples)

    def under(self, empty: BatchInformation) -> BatchInformation | None:
        """A copy under the names and accounts that the samples have by now; None where it doesn't hold for them.

        Samples have to count together as they did, since copies have the numbers of all. With a ledger the ids have to
        be the same, and sketches in the directions that the ledger has by now.
        """
        accounts, ids = empty.accounts, empty.ids
        if list(self._by_label.values()) != list(empty._by_label.values()) or (
            accounts is not None and self.ids != ids
        ):
            return None
        for sample in self.samples:
            account = None if accounts is None else accounts.get(sample.id)
            if account is None:
                continue
            if sample.directions is None or not np.array_equal(sample.directions, account.directions):
                return None
        samples = [replace(sample, id=identifier) for sample, identifier in zip(self.samples, ids, strict=True)]
        return replace(self, samples=samples, accounts=accounts)

    def concentration_note(self, exposures: Sequence[Exposure]) -> list[str]:
        """That numbers are averages over some of the coordinates, where the release depends on fewer than half."""
        pairs = [
            (sample.concentration, exposure.revealed.high)
            for sample, exposure in zip(self.samples, exposures, strict=True)
            if sample.concentration is not None and exposure.revealed is not None
        ]
        return reached_note(pairs, len(self), "limits are held against that average")
