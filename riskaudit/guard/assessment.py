"""How exposed each sample of a batch is at any noise: quickly for all, then as exactly as wanted for some."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from riskaudit.audit import AuditSettings
from riskaudit.audit.evidence import Evidence
from riskaudit.audit.plan import choose_plan, fitting_samples
from riskaudit.audit.targets import CARRIED, carrying_targets
from riskaudit.errors import GuardError
from riskaudit.guard.client import Client
from riskaudit.guard.doubts import KnownEvidence
from riskaudit.guard.evidence import gather_evidence
from riskaudit.guard.ledger import Account, Entry
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.inputs.discrete import SPARSE_CODES, are_sparse_codes
from riskaudit.linalg import KrylovSpace
from riskaudit.policy import Exposure, Policy, Range, concentrated
from riskaudit.priors import Prior
from riskaudit.release import Batch
from riskaudit.sensitivity import Clock, Concentration, Information, Linearisation, few_products, reached_note
from riskaudit.sensitivity.information import BracketedInformation, ExactInformation

# A product with H costs at most so many gradients of the batch (benchmarks/RESULTS.md), everything else of a review
# so many.
PRODUCT_GRADIENTS, OTHER_GRADIENTS = 7.0, 8.0
LEAST_PRODUCTS, MOST_PRODUCTS = 3, 32
# Products per sample without a bound on the cost.
DEFAULT_PRODUCTS = 7
# Samples whose time is measured before the budget is spent on the others.
FIRST_SAMPLES = 8
# The share of the time that is left which the samples of one go may take.
TIME_SHARE = 0.8
# Relative width of a refined interval where not all eigenvalues are affordable.
REFINED_PRECISION = 0.05
UNCHECKED = "the derivative was not held against the gradient itself"
# Fisher information of a release without noise, as large as sums of it stay finite.
EVERYTHING = 1e100


@dataclass(frozen=True, eq=False)
class Sketched:
    """The Krylov space of one sample's first products, for a ledger; nothing of the batch is kept alive.

    Attributes:
        directions: Q, [k, d].
        core: Q H Q^T, [k, k].
    """

    directions: np.ndarray
    core: np.ndarray

    @classmethod
    def of(cls, space: KrylovSpace) -> Sketched:
        """Of an iteration."""
        tridiagonal = space.tridiagonal
        count = tridiagonal.num_products
        between = tridiagonal.off_diagonal[: count - 1] if count else np.zeros(0)
        core = np.diag(tridiagonal.diagonal[:count]) + np.diag(between, 1) + np.diag(between, -1)
        return cls(space.basis[:count].double().cpu().numpy(), core)


@dataclass(eq=False)
class Assessment:
    """What is known of a batch; samples without an entry were not assessed.

    Attributes:
        batch: the samples.
        ids: of the samples.
        groups: classes, None where targets aren't classes.
        information: by place in the batch.
        sketches: by place, where a ledger wants them.
        products: with H, over all samples.
        summed: whether the sum over the samples leaves, not their mean.
        labels: the same for samples that are one person's; none has a twin where empty.
        shares: by place, of the sample's gradient in what leaves; None where that is one over their number.
        evidence: for and against the derivative, by place.
        warnings: of the whole batch that was assessed, for the decision.
        reached: by place, how many coordinates of the input the release depends on.
        carriers: whether each sample's target carries its input; none does where empty.
        sparse_codes: whether the inputs are codes, of which the policy doesn't take the numbers.
    """

    batch: Batch
    ids: list[str]
    groups: list[str | None]
    information: dict[int, Information] = field(default_factory=dict)
    sketches: dict[int, Sketched] = field(default_factory=dict)
    products: int = 0
    summed: bool = False
    labels: list[int] = field(default_factory=list)
    shares: list[float] | None = None
    evidence: dict[int, Evidence | KnownEvidence] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    carriers: list[bool] = field(default_factory=list)
    reached: dict[int, Concentration] = field(default_factory=dict)
    sparse_codes: bool = False

    def __post_init__(self) -> None:
        self._by_label: dict[int, list[int]] = {}
        for place, label in enumerate(self.labels):
            self._by_label.setdefault(label, []).append(place)

    def exposures(self, noise_std: float, accounts: dict[str, Account] | None = None) -> list[Exposure]:
        """Of every sample, if the mean (or sum) over the samples leaves with noise of this std on its entries.

        Args:
            noise_std: Fisher-equivalent; 0 reveals everything.
            accounts: of a ledger, for the totals.
        """
        return [self.exposure(place, noise_std, len(self.ids), accounts) for place in range(len(self.ids))]

    def exposure(
        self, place: int, noise_std: float, batch_size: int, accounts: dict[str, Account] | None = None
    ) -> Exposure:
        """Of one sample among ``batch_size`` whose mean (or sum) leaves."""
        identifier, group = self.ids[place], self.groups[place]
        if not noise_std:
            # Nothing stands between the attacker and the gradient: assume full disclosure.
            total = None if accounts is None else Range(0.0, 1.0)
            return Exposure(identifier, group, Range(1.0, 1.0), Range(0.0, 0.0), total)
        found = self.information.get(place)
        twins = self.twins(place)
        if found is None or any(twin not in self.information for twin in twins):
            return Exposure(identifier, group)
        if self.doubt(place, noise_std, batch_size) is not None:
            return Exposure(identifier, group)
        sigma = self.sample_noise(noise_std, batch_size, place)
        own, own_error = found.revealed(sigma), found.error(sigma)
        revealed, error = Range(own.low, own.high), Range(own_error.low, own_error.high)
        if len(twins) > 1:
            # What any of them reveals, it reveals of the same person.
            every = [self.information[twin] for twin in twins]
            revealed = Range(revealed.low, max(one.revealed(sigma).high for one in every))
            error = Range(min(one.error(sigma).low for one in every), error.high)
        # Limits are averages over the coordinates; those that nothing depends on would hide the others.
        factor = max(self.reached[twin].factor if twin in self.reached else 1.0 for twin in twins)
        held = (revealed, error) if factor == 1 else concentrated(revealed, factor, found.tau)
        total = None
        if accounts is not None:
            after = self.account(place, noise_std, batch_size, accounts.get(identifier))
            total = Range(0.0, min(1.0, factor * after.revealed))
        return Exposure(identifier, group, *held, total)

    def doubt(self, place: int, noise_std: float, batch_size: int) -> str | None:
        """Why nothing is claimed of a sample, or of another of its person's, if that is so."""
        doubts = [self._own_doubt(twin, noise_std, batch_size) for twin in self.twins(place)]
        return next((doubt for doubt in doubts if doubt is not None), None)

    def _own_doubt(self, place: int, noise_std: float, batch_size: int) -> str | None:
        found = self.information.get(place)
        if found is None or not noise_std:
            return None
        if self.carriers and self.carriers[place]:
            return CARRIED
        if self.sparse_codes:
            return f'{SPARSE_CODES}; sparse_codes = "accept" in the policy takes the numbers as they are'
        evidence, sigma = self.evidence.get(place), self.sample_noise(noise_std, batch_size, place)
        if evidence is None:
            return UNCHECKED
        error = found.error(sigma).low if evidence.quotients else None
        return evidence.doubt(sigma, error, found.revealed(sigma).high if evidence.hidden else None)

    def account(self, place: int, noise_std: float, batch_size: int, before: Account | None) -> Account:
        """A sample's account once the mean (or sum) over ``batch_size`` samples has left with this noise."""
        found, sketch = self.information[place], self.sketches[place]
        dimension = self.batch.inputs[place].numel()
        if before is None:
            before = Account.empty(dimension, found.tau, sketch.directions)
        if (before.tau, before.dimension) != (found.tau, dimension):
            raise GuardError(
                f"the ledger counts samples of {before.dimension} inputs under a prior of std {before.tau:g}, and this "
                f"one has {dimension} and {found.tau:g}; use a ledger of its own"
            )
        if not noise_std or self.doubt(place, noise_std, batch_size) is not None:
            return before.after(Entry(dimension, math.inf, EVERYTHING * np.eye(len(sketch.core))))
        sigma = self.sample_noise(noise_std, batch_size, place)
        precision = sigma**-2
        most = found.revealed(sigma).high
        return before.after(Entry(most * dimension, trace_of(found) * precision, sketch.core * precision))

    def twins(self, place: int) -> list[int]:
        """Places of all samples that are this one's person's, its own among them."""
        return self._by_label[self.labels[place]] if self.labels else [place]

    def sample_noise(self, noise_std: float, batch_size: int, place: int) -> float:
        """Std of the noise that one sample's own release has, where ``batch_size`` share what leaves with this one.

        c copies of it have the same Jacobian, so that their sum has c times it: 1 / c of the noise.
        """
        twins = self.twins(place)
        if self.shares is not None:
            return noise_std / sum(self.shares[twin] for twin in twins)
        return (noise_std if self.summed else batch_size * noise_std) / len(twins)

    def select(self, places: Sequence[int]) -> Assessment:
        """Of some of the samples; the products stay those of all."""
        return Assessment(
            self.batch.select(list(places)),
            [self.ids[place] for place in places],
            [self.groups[place] for place in places],
            {new: self.information[old] for new, old in enumerate(places) if old in self.information},
            {new: self.sketches[old] for new, old in enumerate(places) if old in self.sketches},
            self.products,
            self.summed,
            [self.labels[place] for place in places] if self.labels else [],
            None if self.shares is None else [self.shares[place] for place in places],
            {new: self.evidence[old] for new, old in enumerate(places) if old in self.evidence},
            self.warnings,
            [self.carriers[place] for place in places] if self.carriers else [],
            {new: self.reached[old] for new, old in enumerate(places) if old in self.reached},
            self.sparse_codes,
        )

    def concentration_note(self, exposures: Sequence[Exposure]) -> list[str]:
        """That numbers are averages over some of the coordinates, where the release depends on fewer than half."""
        known = [
            (one, own.high) for place, one in self.reached.items() if (own := exposures[place].revealed) is not None
        ]
        return reached_note(known, len(self.ids), "limits are held against that average")


def trace_of(information: Information) -> float:
    """Upper end of tr H."""
    if isinstance(information, ExactInformation):
        return float(information.eigenvalues.sum())
    assert isinstance(information, BracketedInformation)
    return information.traces.trace.high


class Assessor:
    """Assesses batches of one client.

    Args:
        client: its release.
        prior: what an attacker is taken to know.
        policy: limits of cost and time, and the confidence.
        sketched: keep what a ledger needs.
    """

    def __init__(self, client: Client, prior: Prior, policy: Policy, sketched: bool) -> None:
        self.client, self.prior, self.policy, self.sketched = client, prior, policy, sketched

    @property
    def products(self) -> int:
        """With H, per sample, that a review may make for a first answer."""
        if self.policy.max_gradients is None:
            return DEFAULT_PRODUCTS
        affordable = int((self.policy.max_gradients - OTHER_GRADIENTS) // PRODUCT_GRADIENTS)
        return max(LEAST_PRODUCTS, min(MOST_PRODUCTS, affordable))

    def quick(
        self, batch: Batch, ids: list[str], groups: list[str | None], accounts: dict[str, Account] | None,
        failure: float, end: float, labels: list[int],
    ) -> Assessment:  # fmt: skip
        """As many samples as time allows, drawn at random where it does not allow all.

        Args:
            batch: the samples.
            ids: of the samples.
            groups: of the samples.
            accounts: of a ledger, whose directions the sketches take over; None without one.
            failure: probability, over the whole batch, that some interval misses.
            end: of the time, on the monotonic clock.
            labels: see `Assessment`.
        """
        shares = self.client.shares(batch)
        carriers = carrying_targets(batch.inputs, batch.targets)
        found = Assessment(
            batch, ids, groups, summed=self.client.summed, labels=labels, shares=shares, carriers=carriers,
            sparse_codes=self.policy.sparse_codes == "block" and are_sparse_codes(batch.inputs),
        )  # fmt: skip
        limited = math.isfinite(end)
        order = list(range(len(batch)))
        if limited:
            secrets.SystemRandom().shuffle(order)
        width = self._width(batch)
        size = min(width, FIRST_SAMPLES) if limited else width
        while order and time.monotonic() < end:
            places, order = order[:size], order[size:]
            started = time.monotonic()
            self._assess(found, places, self.products, accounts, failure / len(batch), lambda: time.monotonic() >= end)
            if limited:
                per_sample = (time.monotonic() - started) / len(places)
                affordable = int(TIME_SHARE * (end - time.monotonic()) / max(per_sample, 1e-9))
                if affordable < 1:
                    break
                size = min(width, affordable)
        return found

    def look(self, found: Assessment, places: list[int], products: int, failure: float, end: float) -> None:
        """Replace what is known of some samples by what so many products each tell.

        Args:
            found: of their batch.
            places: of the samples.
            products: with H, per sample.
            failure: probability, over the whole batch, that some interval misses.
            end: of the time, on the monotonic clock.
        """
        width = self._width(found.batch)
        for first in range(0, len(places), width):
            if time.monotonic() < end:
                part = places[first : first + width]
                self._assess(found, part, products, None, failure / len(found.ids), lambda: time.monotonic() >= end)

    def refine(self, found: Assessment, place: int, noise_std: float, failure: float, end: float) -> None:
        """Replace what is known of one sample by something tighter, if time is left.

        All eigenvalues where they are affordable, else an interval aimed at this noise.
        """
        if time.monotonic() >= end:
            return
        one = found.batch.select([place])
        batch = self.client.batch(one.inputs, one.targets)
        jacobian = self.client.jacobian(batch, found.sample_noise(noise_std, len(found.ids), place))
        settings = AuditSettings(
            proxies=("posterior_rmse", "revealed_fraction"), precision=REFINED_PRECISION, confidence=1 - failure
        )
        release = jacobian.release
        plan = choose_plan(settings, jacobian.shape[1], release.num_entries, 1, 1, release.device)
        clock = Clock(None if math.isinf(end) else max(0.0, end - time.monotonic()))
        at = Linearisation(jacobian, [place], self.prior, plan, 0, clock, _probes(batch.inputs.flatten(1)))
        information = at.information
        if information is not None:
            found.information[place] = information[0]
        found.products += at.matvecs

    def _width(self, batch: Batch) -> int:
        """Samples that fit in memory at once."""
        return max(1, fitting_samples(self.client.sample_bytes(batch), batch.inputs.device))

    def _assess(
        self,
        found: Assessment,
        places: Sequence[int],
        number: int,
        accounts: dict[str, Account] | None,
        failure: float,
        deadline: Callable[[], bool],
    ) -> None:
        part = found.batch.select(list(places))
        jacobian = self.client.jacobian(part, 0.0)
        hessian, flat = jacobian.hessian(), part.inputs.flatten(1)
        few = few_products(hessian, self.prior.bind(part.targets, flat), number, failure, _probes(flat), deadline)
        found.products += few.products
        if few.products < len(places) or (places[0] in found.information and deadline()):
            # Not one product for everybody, so that no bound exists; or less than what is known already.
            return
        unexamined = [row for row, place in enumerate(places) if place not in found.evidence]
        if unexamined:
            whole = jacobian if len(unexamined) == len(places) else None
            looked, spaces = part.select(unexamined), [few.spaces[row] for row in unexamined]
            evidence = gather_evidence(self.client, self.prior, looked, spaces, whole)
            found.evidence.update(zip([places[row] for row in unexamined], evidence, strict=True))
        found.information.update(zip(places, few.information, strict=True))
        found.reached.update(zip(places, map(Concentration.of, few.spaces), strict=True))
        if self.sketched:
            found.sketches.update(zip(places, map(Sketched.of, few.spaces), strict=True))
            self._project(found, places, accounts or {}, hessian.matmat)

    def _project(
        self,
        found: Assessment,
        places: Sequence[int],
        accounts: dict[str, Account],
        products: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Q H Q^T in the directions that the ledger keeps of samples that it knows."""
        known = {
            row: accounts[found.ids[place]].directions
            for row, place in enumerate(places)
            if found.ids[place] in accounts
        }
        if not known:
            return
        flat, most = found.batch.inputs[list(places)].flatten(1), max(len(rows) for rows in known.values())
        columns = flat.new_zeros(len(places), flat.shape[1], most)
        for row, directions in known.items():
            columns[row, :, : len(directions)] = torch.as_tensor(directions.T).to(flat)
        images = products(columns)
        found.products += most * len(places)
        for row, directions in known.items():
            count = len(directions)
            core = (columns[row, :, :count].mT @ images[row, :, :count]).double().cpu().numpy()
            found.sketches[places[row]] = Sketched(directions, (core + core.T) / 2)


def _probes(like: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Draws standard normal vectors [B, d] that nobody can foresee, such as whoever chose the model's weights."""
    noise = SecureNoise("gaussian", 1.0)
    return lambda _: noise.draw(like.numel()).reshape(like.shape).to(like)
