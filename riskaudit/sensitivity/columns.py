"""What a release tells of the columns of a table, one by one, in their own units.

Numbers: the posterior covariance of an attacker who knows all other samples that leave along, and of this one no more
than the prior, linearised: L (L H L / sigma^2 + 1)^-1 L; the root of its diagonal, times the column's units per unit of
the input, is the error that is left. Under an isotropic prior, which has one number for all inputs, columns have their
own: standard deviation 1 where the encoding standardises, that of evenly likely values in a range, and of evenly
likely codes of a category, the prior's elsewhere; all independent.

Categories: exact differences of the release when one category takes the other's place, all else known
(`riskaudit.statistics.recognition`). Nothing is linearised, and no prior is asked. Copies of the sample change with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian import Jacobian
from riskaudit.jacobian.base import CHUNK_ENTRIES
from riskaudit.linalg import Interval, Spectrum
from riskaudit.priors import BoundPrior
from riskaudit.release import Batch
from riskaudit.release.copies import first_copies
from riskaudit.results import Estimate, Status
from riskaudit.results.tables import ColumnRisk
from riskaudit.sensitivity.information import Information
from riskaudit.sensitivity.linearisation import Linearisation, sample_generator
from riskaudit.statistics.recognition import Recognition, recognition
from riskaudit.tables import CategoryInputs, NumberInput, TableEncoding

Values = NDArray[np.float64]
# Beyond probes and steps of other computations.
CATEGORY_STREAM = 1 << 21
# Inputs of which the posterior covariance is held.
MOST_INPUTS = 4096
# Of the differences of one category, entries that are held at once, and candidates whose Gram matrix is looked at; of
# more, what pairs prove is all that is said.
MOST_ENTRIES, MOST_CANDIDATES = 2**26, 256
OTHER_LAW = "candidates are told apart exactly only under Gaussian noise"
TOO_MANY = f"more than {MOST_INPUTS} inputs, whose posterior covariance isn't held"


@final
class NumberVariance:
    """Posterior variance of one input at any noise: sum_k w_k sigma^2 / (k + sigma^2).

    Args:
        eigenvalues: of L H L, [d].
        weights: squares of the input's row of L V, [d], which sum to its prior variance.
    """

    def __init__(self, eigenvalues: Values, weights: Values) -> None:
        self.eigenvalues, self.weights = eigenvalues, weights

    def share(self, sigma: float) -> float:
        """Of the prior variance, what is left."""
        with np.errstate(over="ignore"):
            left = 1.0 / (1.0 + self.eigenvalues / max(sigma * sigma, 1e-300))
        total = float(self.weights.sum())
        return float((self.weights * left).sum()) / total if total > 0 else 0.0


@dataclass(frozen=True, eq=False)
class SampleColumns:
    """One sample's columns.

    Attributes:
        numbers: of each column of numbers, with its inputs; variances are None where they aren't known.
        categories: of each category; None where candidates can't be told apart.
    """

    numbers: Sequence[tuple[NumberInput, NumberVariance | None]]
    categories: Sequence[tuple[CategoryInputs, Recognition | None]]

    def risks(self, sigma: float) -> dict[str, ColumnRisk]:
        """By column, at one noise."""
        return {number.name: _number_risk(number, variance, sigma) for number, variance in self.numbers} | {
            category.name: _category_risk(category, found, sigma) for category, found in self.categories
        }

    @property
    def complete(self) -> bool:
        """Whether every column has a number."""
        return all(known is not None for _, known in (*self.numbers, *self.categories))

    def information(self, base: Information) -> TableInformation:
        """What a release tells of the sample and of each of its columns."""
        variances = [variance for _, variance in self.numbers if variance is not None]
        return TableInformation(base, variances, [found for _, found in self.categories if found is not None])


def _number_risk(number: NumberInput, variance: NumberVariance | None, sigma: float) -> ColumnRisk:
    if variance is None:
        unknown = Estimate(value=None, status="not_applicable")
        return ColumnRisk(kind="number", estimate=unknown, guess=0.0, revealed=unknown, reason=TOO_MANY)
    left, guess = variance.share(sigma), number.std * math.sqrt(float(variance.weights.sum()))
    return ColumnRisk(
        kind="number",
        estimate=Estimate(value=guess * math.sqrt(left), status="exact"),
        guess=guess,
        revealed=Estimate(value=min(1.0, max(0.0, 1.0 - left)), status="exact"),
    )


def _category_risk(category: CategoryInputs, found: Recognition | None, sigma: float) -> ColumnRisk:
    guess = 1.0 / len(category.codes)
    if found is None:
        unknown = Estimate(value=None, status="not_applicable")
        return ColumnRisk(kind="category", estimate=unknown, guess=guess, revealed=unknown, reason=OTHER_LAW)
    return ColumnRisk(kind="category", estimate=found.right(sigma), guess=guess, revealed=found.revealed(sigma))


@final
class TableInformation(Information):
    """What a release tells of a sample whose every column has to be hidden: the most revealed one counts.

    Args:
        base: of the inputs as a whole.
        numbers: of the columns of numbers.
        categories: of the categories.
    """

    def __init__(self, base: Information, numbers: Sequence[NumberVariance], categories: Sequence[Recognition]) -> None:
        self.base, self.numbers, self.categories = base, list(numbers), list(categories)
        self.tau: float = base.tau
        self.status: Status = "bracketed" if self.categories else base.status

    @override
    def revealed(self, sigma: float) -> Interval:
        whole, most = self.base.revealed(sigma), self._most(sigma)
        return Interval(whole.value, whole.low, max(whole.high, most))

    @override
    def error(self, sigma: float) -> Interval:
        whole, most = self.base.error(sigma), self._most(sigma)
        # The error that a revealed fraction stands for.
        return Interval(whole.value, min(whole.low, self.tau * math.sqrt(max(0.0, 1.0 - most))), whole.high)

    def _most(self, sigma: float) -> float:
        """The upper end of what is revealed of any column."""
        highs = [1.0 - number.share(sigma) for number in self.numbers]
        highs += [high for found in self.categories if (high := found.revealed(sigma).ends[1]) is not None]
        return max(highs, default=0.0)

    @property
    @override
    def scale(self) -> tuple[float, float]:
        return self.base.scale

    @property
    @override
    def trace(self) -> Interval | None:
        return self.base.trace


@final
class TableSensitivity:
    """The columns of a batch of uploads.

    Args:
        encoding: of the table.
        jacobian: of a noisy release at the uploads.
        at: the release linearised there, of every input that occurs once.
        owners: of each sample of the uploads, its input's place in the linearisation.
        indices: of each sample, its position in the audited data.
    """

    def __init__(
        self, encoding: TableEncoding, jacobian: Jacobian, at: Linearisation, owners: Sequence[int],
        indices: Sequence[int],
    ) -> None:  # fmt: skip
        self.encoding, self.jacobian, self.at = encoding, jacobian, at.informed
        self.owners, self.indices, self.seed = owners, indices, at.seed
        self.failure = at.plan.failure / max(1, len(encoding.categories))
        self.copies = [each for upload in first_copies(jacobian.batch) for each in upload]

    def of_samples(self) -> list[SampleColumns]:
        """Of every sample of the uploads, in their order."""
        return [self._of_sample(place) for place in range(len(self.owners))]

    def _of_sample(self, place: int) -> SampleColumns:
        owner = self.owners[place]
        numbers = [(number, self._variance(number, owner)) for number in self.encoding.numbers]
        categories = [
            (category, self._recognition(category, place, part))
            for part, category in enumerate(self.encoding.categories)
        ]
        return SampleColumns(numbers, categories)

    def _recognition(self, category: CategoryInputs, place: int, part: int) -> Recognition | None:
        noise = self.jacobian.release.noise
        if noise is None or noise.law != "gaussian":
            return None
        distances, gram = self._differences(category, place)
        seed = sample_generator(self.seed, self.indices[place], CATEGORY_STREAM + part).initial_seed()
        return recognition(distances, gram, np.random.default_rng(seed), self.failure)

    @torch.no_grad()
    def _differences(self, category: CategoryInputs, place: int) -> tuple[Values, Values | None]:
        """||D_v|| and the Gram matrix of the D_v, the latter where they fit in memory together."""
        batch, size = self.jacobian.batch, self.jacobian.batch.upload_size
        upload = batch.select([place // size])
        own = torch.as_tensor(category.codes, dtype=batch.inputs.dtype, device=batch.inputs.device)
        present = upload.inputs.flatten(1)[place % size, category.span]
        others = own[(own - present).abs().amax(1) > 1e-9 * (1.0 + own.abs().amax())]
        first = self.copies[place]
        copies = [each for each in range(size) if self.copies[place - place % size + each] == first]
        release, entries = self.jacobian.release, self.jacobian.release.num_entries
        rows = max(1, CHUNK_ENTRIES // entries // size)
        base = release.mean(upload).double()
        is_held = len(others) * entries <= MOST_ENTRIES and len(others) < MOST_CANDIDATES
        parts: list[Tensor] = []
        squares: list[Tensor] = []
        for codes in torch.split(others, rows):
            found = release.mean(_with_codes(upload, copies, category, codes)).double() - base
            squares.append(found.square().sum(1))
            parts += [found] if is_held else []
        distances = torch.cat(squares).sqrt().cpu().numpy()
        if not parts:
            return distances, None
        whole = torch.cat(parts)
        return distances, (whole @ whole.mT).cpu().numpy()

    def _variance(self, number: NumberInput, owner: int) -> NumberVariance | None:
        if self._posterior is None:
            return None
        eigenvalues, roots = self._posterior[owner]
        return NumberVariance(eigenvalues, np.square(roots[number.position]))

    @cached_property
    def _posterior(self) -> list[tuple[Values, Values]] | None:
        """Eigenvalues k of L H L [d] and L V [d, d] of every input of the linearisation."""
        dimension = self.at.dimension
        if not self.encoding.numbers or dimension > MOST_INPUTS:
            return None
        spectrum = self.at.spectrum or Spectrum.of(self.at.hessian)
        found = []
        for place, (values, vectors) in enumerate(zip(spectrum.values, spectrum.vectors, strict=True)):
            root = self._root(self.at.sample_prior.select([place]), values)
            half = torch.sqrt(values.clamp_min(0.0))[:, None] * (vectors.mT @ root)
            eigenvalues, own = torch.linalg.eigh(half.mT @ half)
            found.append((eigenvalues.clamp_min(0.0).cpu().numpy(), (root @ own).cpu().numpy()))
        return found

    def _root(self, prior: BoundPrior, like: Tensor) -> Tensor:
        """L [d, d], float64."""
        dimension = self.at.dimension
        if not prior.isotropic:
            unit = torch.eye(dimension, dtype=prior.mean.dtype, device=prior.mean.device)
            return prior.root_of_rows(0, unit).mT.to(like)
        stds = torch.full((dimension,), float(prior.std[0])).to(like)
        for number in self.encoding.numbers:
            if number.expected is not None:
                stds[number.position] = number.expected[1]
        for category in self.encoding.categories:
            stds[category.span] = torch.as_tensor(category.codes.std(axis=0)).to(like)
        return torch.diag(stds)


def _with_codes(upload: Batch, copies: Sequence[int], category: CategoryInputs, codes: Tensor) -> Batch:
    """One upload once for every code [m, width], which some of its samples have in place of their own."""
    many = upload.select([0] * len(codes))
    inputs = many.inputs.clone().reshape(len(codes), upload.upload_size, -1)
    for position in copies:
        inputs[:, position, category.span] = codes
    return replace(many, inputs=inputs.reshape(many.inputs.shape))
