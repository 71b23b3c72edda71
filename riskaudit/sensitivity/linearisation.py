"""A release linearised at a batch of uploads: what all proxies share, each piece computed once.

J is that of an upload's n samples of d coordinates together; n = 1 where every sample leaves alone. A sample's numbers
are those of its block of coordinates, and an attacker's who knows none of the other samples.

H = J^T J; sigma is the Fisher-equivalent std of the noise. The prior's covariance is tau^2 C with C = L L and tr C = d,
and eps = sigma^2 / tau^2 (docs/theory.md, section 2). The posterior is read off K = L H L at the shift eps, and
everything that has no prior in it off H. An isotropic prior has L = 1, and K = H. Of an upload C is block diagonal, and
tau^2 the mean over its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from riskaudit.jacobian import Jacobian
from riskaudit.jacobian.informed import InformedJacobian
from riskaudit.linalg import (
    EIGENVALUE_SOLVERS,
    INVERSE_SOLVERS,
    MEASURING_PRODUCTS,
    Dense,
    DenseInverse,
    Interval,
    InverseSolver,
    MatrixOperator,
    MeasuredRounding,
    MixedPrecisionOperator,
    Power,
    Solution,
    Spectrum,
)
from riskaudit.linalg.operators import DowndatedOperator, LinearOperator
from riskaudit.linalg.solvers.truncated_cg import truncated_cg
from riskaudit.priors import BoundPrior, Prior, in_uploads, white_prior
from riskaudit.release import Batch
from riskaudit.results import Status
from riskaudit.sensitivity.brackets import Brackets
from riskaudit.sensitivity.ends import SpectrumEnds, dimension_failure, smallest_ritz
from riskaudit.sensitivity.information import (
    SMALLEST_SHIFT,
    BracketedInformation,
    ExactInformation,
    Information,
    RaisedInformation,
)
from riskaudit.sensitivity.norms import BracketedNorms
from riskaudit.sensitivity.plan import Clock, Plan
from riskaudit.sensitivity.probing import NarrowDimension
from riskaudit.sensitivity.spectrum import PosteriorSpectrum
from riskaudit.sensitivity.tokens import TokenDifferences
from riskaudit.statistics.seeding import derived_seed

# The start of the first iteration is stream 1; that of the i-th probe is stream 1 + i.
NOISE_STREAM, START_STREAM = 0, 1
# Proxies that are read off traces.
OF_TRACES = frozenset({"revealed_fraction", "posterior_rmse", "map_rmse", "expected_rmse"})
# Of them those that the whole upload's traces are made for, where several samples leave together.
OUTSIDERS = frozenset({"revealed_fraction", "posterior_rmse"})
# How precise a bias has to be, relative to itself, and to the standard deviation that it comes beside or what is left
# open of that.
BIAS_PRECISION, BIAS_SHARE = 0.3, 0.5
# A random vector has about sqrt(1 / d) of its length in any one direction.
PROBE_TOLERANCE = 1e-4
# The draw that the rounding of products is measured with, beyond those of probes.
ROUNDING_DRAW = 1 << 16
# Draws of errors and of the noise behind them, beyond those of probes; how precise they are, and what they may cost.
ERROR_DRAW, ERROR_STREAM, DRAW_PRECISION, DRAW_PRODUCTS = 1 << 17, 1 << 18, 0.1, 50
# Products are made in single precision where eps is this many times what their rounding may come to: it widens a
# revealed fraction by 2 / 50 of what isn't revealed at most, half of the width aimed at.
RESOLVED = 50.0


def sample_generator(seed: int, index: int, stream: int) -> torch.Generator:
    """A CPU generator of sample ``index``'s own, so that results don't depend on batches or devices."""
    return torch.Generator().manual_seed(derived_seed(seed, index, stream))


def _draw(seed: int, indices: list[int], like: Tensor, number: int) -> Tensor:
    """Standard normal vectors of the shape, dtype and device of ``like``, [B, d]."""
    drawn = [
        torch.randn(like.shape[1], generator=sample_generator(seed, index, START_STREAM + number), dtype=torch.float64)
        for index in indices
    ]
    return torch.stack(drawn).to(like)


def _real_coordinates(batch: Batch, dimension: int) -> Tensor:
    """Coordinates of each sample that aren't padding, [B], float64, of ``dimension`` in all."""
    if batch.lengths is None:
        return torch.full((len(batch),), float(dimension), dtype=torch.float64, device=batch.inputs.device)
    return batch.lengths.double() * (dimension / batch.inputs.shape[1])


def _grade(status: Status, probe: Status, lost: bool) -> Status:
    """Status of a solve without shift, given its probe's and whether the known answer was lost in it."""
    if status != "converged":
        return status
    if probe != "converged":
        return "not_converged"
    return "singular" if lost else "converged"


class Linearisation:
    """J of a noisy release at U uploads, with the prior and the solvers.

    Args:
        jacobian: of a release with noise (an undefended one gets its reference noise first), at samples whose
            loss and release are finite.
        indices: positions in the audited data, of every upload's first sample, which seed its random draws.
        prior: what the attacker knows beforehand.
        plan: solvers and limits.
        seed: of the whole audit.
        clock: the time that the batch may take.
        draw: of standard normal vectors [U, n d], in the place of draws from the seed.
        spectrum: of H, where it is known already and the plan affords it.
        single: J at the same uploads in single precision, for the products of Lanczos iterations where noise allows.
        tokens: what other tokens do to what leaves, of texts.

    Attributes:
        sigma: Fisher-equivalent standard deviation of the noise.
        sample_prior: at the samples, [U n, d].
        prior: at the uploads, [U, n d].
        eps: sigma^2 / tau^2, [U], float64, large enough for functions with a pole at -eps.
        upload_size: n.
        dimension: d.
        dimensions: of each sample, [U n], float64: fewer than d where texts of several lengths leave together.
    """

    def __init__(
        self,
        jacobian: Jacobian,
        indices: list[int],
        prior: Prior,
        plan: Plan,
        seed: int,
        clock: Clock | None = None,
        draw: Callable[[int], Tensor] | None = None,
        spectrum: Spectrum | None = None,
        single: Jacobian | None = None,
        tokens: TokenDifferences | None = None,
    ) -> None:
        noise = jacobian.release.noise
        assert noise is not None
        self.jacobian, self.release, self.batch = jacobian, jacobian.release, jacobian.batch
        self.plan, self.clock = plan, clock or Clock()
        self.indices, self.seed, self._given_draw = indices, seed, draw
        self.sigma = noise.fisher_std
        self._prior, self.upload_size = prior, self.batch.upload_size
        self.sample_prior: BoundPrior = prior.bind(self.batch.targets, self.batch.inputs.flatten(1), self.batch.lengths)
        self.prior: BoundPrior = in_uploads(self.sample_prior, self.upload_size)
        self.eps = (self.sigma / self.prior.std).square().clamp_min(SMALLEST_SHIFT)
        self._single = single if plan.only_brackets else None
        self.dimension = jacobian.shape[1] // self.upload_size
        self.dimensions = _real_coordinates(self.batch, self.dimension)
        self._given_spectrum = spectrum
        self.tokens = tokens
        self._matvecs = 0

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def num_uploads(self) -> int:
        """U."""
        return self.batch.num_uploads

    @cached_property
    def hessian(self) -> LinearOperator:
        """H, [U, n d, n d]."""
        double = self.jacobian.hessian()
        if self._single is None:
            return double
        single = self._single.hessian()
        measured = MeasuredRounding.of(double, single, self.cosine_vector, self._draw(ROUNDING_DRAW))
        self._matvecs += MEASURING_PRODUCTS * self.num_uploads
        norms = zip(self.eps.tolist(), self.prior.in_its_units().largest.tolist(), strict=True)
        resolved = [eps > RESOLVED * norm * measured.slack(place) for place, (eps, norm) in enumerate(norms)]
        return MixedPrecisionOperator(double, single, measured, resolved)

    @property
    def products_dtypes(self) -> list[str]:
        """The dtype of iterations' products, of each upload."""
        single = self.hessian.in_single if isinstance(self.hessian, MixedPrecisionOperator) else [False] * len(self.eps)
        own = str(self.jacobian.dtype).removeprefix("torch.")
        return ["float32" if is_single else own for is_single in single]

    def blocks(self, vectors: Tensor) -> Tensor:
        """Vectors [U, n d] of uploads as those of their samples, [U n, d]."""
        return vectors.reshape(len(self), -1)

    @property
    def matvecs(self) -> int:
        """Products with H (for a dense spectrum, columns of J) over all uploads so far."""
        others = self.__dict__.get("_with_others_known")
        total = self._matvecs + (0 if others is None else others.matvecs)
        if self._all_eigenvalues:
            return total
        of_positions: Brackets | None = self.__dict__.get("_position_brackets")
        every = (self.brackets, self.posterior_brackets, *([] if of_positions is None else [of_positions]))
        brackets = {id(each): each for each in every}
        return total + self.ends.matvecs + sum(each.matvecs for each in brackets.values())

    @cached_property
    def gradient_norm(self) -> Tensor:
        """||r(x)||, [U], float64."""
        return self.jacobian.norms

    @cached_property
    def cosine_vector(self) -> Tensor:
        """v = J^T rhat, [U, n d]; 0 where r = 0."""
        return self.jacobian.pull_mean()

    @cached_property
    def pulled_noise(self) -> Tensor:
        """J^T delta for each upload's drawn noise, [U, n d]."""
        return self.jacobian.pull_each(
            lambda upload: self.release.sample_noise(sample_generator(self.seed, self.indices[upload], NOISE_STREAM))
        )

    @cached_property
    def displacement(self) -> Tensor:
        """x - mu, [U, n d]."""
        return self.batch.inputs.reshape(self.num_uploads, -1) - self.prior.mean

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """All of H's eigenvalues, where the plan affords them."""
        if not self._all_eigenvalues or self._given_spectrum is not None:
            return self._given_spectrum
        spectrum = Spectrum.of(self.hessian)
        self._matvecs += spectrum.matvecs * self.num_uploads
        return spectrum

    @property
    def _all_eigenvalues(self) -> bool:
        return "dense" in (self.plan.solver, self.plan.inverse)

    @cached_property
    def posterior_spectrum(self) -> PosteriorSpectrum | None:
        """All of K's eigenvalues, where the plan affords them."""
        if self.spectrum is None:
            return None
        like = self.spectrum.values.new_empty(len(self), self.dimension)
        prior = in_uploads(self._prior.bind(self.batch.targets, like, self.batch.lengths), self.upload_size)
        return PosteriorSpectrum.of(self.spectrum, prior.in_its_units(), self.upload_size)

    @cached_property
    def ends(self) -> SpectrumEnds:
        """What Lanczos iterations certify of H's largest and smallest eigenvalue."""
        least = self.jacobian.smallest_eigenvalue_bound
        probes = None
        if self.prior.isotropic and self.upload_size == 1 and self.plan.proxies & OF_TRACES:
            plan, eps, failure = self.plan, self.eps.tolist(), dimension_failure(self.plan)
            probes = NarrowDimension(eps, plan.precision, self.dimension, failure, self._thresholds).finished
        return SpectrumEnds(self.hessian, self.plan, least, self._draw, self.clock, probes)

    @cached_property
    def brackets(self) -> Brackets:
        """What Lanczos iterations certify of H, whatever the prior."""
        totals = torch.full_like(self._totals, self.dimension) if self.upload_size > 1 else None
        return Brackets(self.ends, white_prior(self.prior.mean), self.eps, totals, self._thresholds)

    @cached_property
    def posterior_brackets(self) -> Brackets:
        """What Lanczos iterations certify of K; the same where the prior is isotropic."""
        if self.prior.isotropic:
            return self.brackets
        totals = self._totals if self.upload_size > 1 else None
        return Brackets(self.ends, self.prior.in_its_units(), self.eps, totals, self._thresholds)

    @property
    def _thresholds(self) -> list[tuple[float, ...]]:
        """Revealed fractions that decide, of every upload."""
        return [self.plan.thresholds_at(tau) for tau in self.prior.std.tolist()]

    @cached_property
    def posterior_variances(self) -> list[Interval]:
        """tr L K (K + eps)^-2 L of every sample: times sigma^2, the variance of the MAP attacker's error."""
        shifts = self.eps.repeat_interleave(self.upload_size).tolist()
        pairs = zip(self.posterior_brackets.traces, shifts, strict=True)
        return [traces.variance(shift) for traces, shift in pairs]

    @cached_property
    def solved_displacement(self) -> BracketedNorms:
        """||L (K + eps)^-1 L^-1 (x - mu)|| of every sample: times eps, the bias of the MAP attacker's error."""
        brackets = self.posterior_brackets
        enough = [
            BIAS_SHARE * self.sigma * math.sqrt(max(0.0, variance.value, variance.high - variance.low)) / shift
            for variance, shift in zip(self.posterior_variances[:: self.upload_size], self.eps.tolist(), strict=True)
        ]
        rhs = brackets.prior.inverse_root(self.displacement)
        return brackets.solution_norms(rhs, self.eps, BIAS_PRECISION, enough)

    @property
    def _totals(self) -> Tensor:
        """tr C_j of every sample in the units of its upload's prior, [U, n], float64."""
        variances = self.sample_prior.variance.reshape(self.num_uploads, -1)
        return self.dimension * variances / self.prior.variance[:, None]

    @cached_property
    def information(self) -> list[Information] | None:
        """What the uploads tell of each sample at any noise; None where the plan can't say."""
        # Errors are per coordinate of a sample's own, of which a padded text has fewer.
        own = (self.dimension / self.dimensions).sqrt()
        taus, units = (self.sample_prior.std * own).tolist(), self.prior.std.tolist()
        if self.posterior_spectrum is not None:
            values = self.posterior_spectrum.spectrum.values.cpu().numpy()
            if self.upload_size == 1 and self.prior.isotropic:
                return [ExactInformation(*row) for row in zip(values, taus, strict=True)]
            weights = self.posterior_spectrum.weights.flatten(0, 1).cpu().numpy()
            owners = [index // self.upload_size for index in range(len(self))]
            rows = zip(owners, taus, weights, strict=True)
            return [ExactInformation(values[upload], tau, row, units[upload]) for upload, tau, row in rows]
        if self.plan.solver != "lanczos":
            return None
        known = self.informed.information if self.upload_size > 1 else None
        return [
            BracketedInformation(traces, tau, units[index // self.upload_size], None if known is None else known[index])
            for index, (traces, tau) in enumerate(zip(self.posterior_brackets.traces, taus, strict=True))
        ]

    @cached_property
    def informed_information(self) -> list[Information] | None:
        """What the uploads tell of each sample to who knows all others, at any noise; None where the plan can't say."""
        known = self.informed.information
        if known is None or self.upload_size == 1 or not self.plan.proxies & OUTSIDERS:
            return known
        assert self.information is not None
        return [
            RaisedInformation(own, other) if own.status == other.status == "bracketed" else own
            for own, other in zip(known, self.information, strict=True)
        ]

    def revealed_by_position(self) -> list[list[Interval]] | None:
        """Revealed fractions of each position of texts that leave alone, of every text; None where unknown."""
        if self.tokens is None or self.upload_size != 1:
            return None
        length = self.tokens.length
        if self.posterior_spectrum is not None:
            shares = self.posterior_spectrum.shares_by_block(self.eps, length).tolist()
            return [[Interval(share, share, share) for share in row] for row in shares]
        if self.plan.solver != "lanczos":
            return None
        traces, shifts = self._position_brackets.traces, self.eps.repeat_interleave(length).tolist()
        found = [
            each.effective_dimension(shift).map(lambda end, total=each.total: min(1.0, end / total))  # type: ignore[misc]
            for each, shift in zip(traces, shifts, strict=True)
        ]
        return [found[first : first + length] for first in range(0, len(found), length)]

    @cached_property
    def _position_brackets(self) -> Brackets:
        """As `posterior_brackets`, with the positions of a text as blocks."""
        assert self.tokens is not None
        length = self.tokens.length
        totals = torch.full((self.num_uploads, length), self.dimension / length, dtype=torch.float64)
        return Brackets(self.ends, self.prior.in_its_units(), self.eps, totals, self._thresholds)

    def posterior_draw(self, number: int) -> Tensor:
        """An error drawn from the posterior N(0, (H / sigma^2 + C^-1 / tau^2)^-1) of every upload, [U, n d].

        Where not all eigenvalues are known it solves (K + eps) w = L J^T delta + sqrt(eps) sigma z, whose solution has
        that covariance, by at most `DRAW_PRODUCTS` products, which leave out directions that little is told of.
        """
        normal, eps = self._draw(ERROR_DRAW + number), self.eps
        posterior = self.posterior_spectrum
        if posterior is not None:
            values, vectors = posterior.spectrum.values, posterior.spectrum.vectors
            spread = self.sigma / (values + eps[:, None]).sqrt()
            white = torch.einsum("bnk,bk->bn", vectors, spread * normal.to(spread))
            return posterior.prior.root(white).to(normal)
        brackets = self.posterior_brackets
        seeds = [sample_generator(self.seed, index, ERROR_STREAM + number) for index in self.indices]
        pulled = self.jacobian.pull_each(lambda upload: self.release.sample_noise(seeds[upload]))
        rhs = brackets.prior.root(pulled.to(normal)) + self.sigma * eps.sqrt()[:, None].to(normal) * normal
        forcing = torch.full_like(rhs[:, 0], DRAW_PRECISION)
        white, _, products = truncated_cg(brackets.operator, rhs, eps.to(rhs), forcing, DRAW_PRODUCTS)
        self._matvecs += int(products.sum())
        return brackets.prior.root(white)

    @property
    def informed(self) -> Linearisation:
        """What an attacker faces who knows all other samples of an upload: every sample by itself."""
        # Not cached where it is the same: memory is freed at once where nothing refers to itself.
        return self if self.upload_size == 1 else self._with_others_known

    @cached_property
    def _with_others_known(self) -> Linearisation:
        samples = [first + offset for first in self.indices for offset in range(self.upload_size)]
        spectrum = None if self.spectrum is None else self._block_spectrum(self.spectrum)
        jacobian, plan = InformedJacobian(self.jacobian), self.plan
        if spectrum is None and plan.of_samples is not None:
            plan = plan.of_samples
        single = None if self._single is None else InformedJacobian(self._single)
        return Linearisation(
            jacobian, samples, self._prior, plan, self.seed, self.clock, spectrum=spectrum, single=single
        )

    def _block_spectrum(self, whole: Spectrum) -> Spectrum:
        """Of the diagonal blocks of H, from its own; no product is needed."""
        blocks = [
            rows @ (values[:, None] * rows.mT)
            for values, vectors in zip(whole.values, whole.vectors, strict=True)
            for rows in vectors.chunk(self.upload_size)
        ]
        return replace(Spectrum.of(MatrixOperator(torch.stack(blocks), psd=True)), matvecs=0)

    def covariance_eigenvalues(self, index: int) -> np.ndarray | None:
        """All eigenvalues of one sample's posterior covariance, [d], float64; None where they aren't known."""
        if self.posterior_spectrum is None:
            return None
        upload = index // self.upload_size
        eigenvalues = self.posterior_spectrum.covariance_eigenvalues(index, float(self.eps[upload]))
        return float(self.prior.variance[upload]) * eigenvalues.cpu().numpy()

    def covariance_norm(self, index: int) -> float:
        """An upper end of the largest of them, where they aren't known."""
        return float(self.prior.variance[index // self.upload_size]) * self.posterior_brackets.norm_remaining(index)

    @property
    def _draw(self) -> Callable[[int], Tensor]:
        """Draws standard normal vectors [U, n d], the i-th of each upload's own; holds no reference to this."""
        like = self.batch.inputs.reshape(self.num_uploads, -1)
        return self._given_draw or partial(_draw, self.seed, self.indices, like)

    @cached_property
    def largest(self) -> Solution:
        """l_1 by the plan's solver."""
        if self.spectrum is not None:
            return Dense.read(self.spectrum)
        if self.plan.solver == "lanczos":
            return self.ends.largest
        solver = EIGENVALUE_SOLVERS[self.plan.solver](self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)
        return self._counted(solver.solve(self.hessian, self._draw(0)))

    @cached_property
    def smallest_ritz(self) -> Tensor | None:
        """An upper bound of l_d from the Lanczos pass, [B], float64; infinite without a product."""
        return smallest_ritz(self.ends.spaces) if self.plan.solver == "lanczos" else None

    @cached_property
    def downdated_spectrum(self) -> Tensor | None:
        """All eigenvalues of H - v v^T ascending [B, d], in the eigenbasis of H."""
        if self.spectrum is None:
            return None
        rotated = torch.einsum("bnk,bn->bk", self.spectrum.vectors, self.cosine_vector.double())
        downdated = [
            torch.linalg.eigvalsh(torch.diag(values) - torch.outer(vector, vector))
            for values, vector in zip(self.spectrum.values, rotated, strict=True)
        ]
        return torch.stack(downdated).clamp_min(0.0)

    @cached_property
    def downdated(self) -> tuple[Solution, Tensor | None]:
        """Largest eigenvalue of H - v v^T by the plan's solver, and an upper bound of the smallest [B], if known."""
        if self.plan.solver == "lanczos":
            if self.clock.limited:
                # Where time is limited the traces come before what matters less.
                _ = self.brackets.traces
            return self.ends.downdated(self.cosine_vector)
        solver = Power(self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)
        operator = DowndatedOperator(self.hessian, self.cosine_vector)
        return self._counted(solver.solve(operator, self._draw(0))), None

    def solve(self, brackets: Brackets, rhs: Tensor, shifts: Tensor) -> Solution:
        """(K + shift)^-1 rhs by the plan's inverse, which isn't "quadrature".

        Args:
            brackets: of the K that is meant.
            rhs: [B, d].
            shifts: [B], float64; 0 needs K = H.
        """
        if self.posterior_spectrum is not None and self.spectrum is not None and self.plan.inverse == "dense":
            spectrum = self.spectrum if brackets.prior.isotropic else self.posterior_spectrum.spectrum
            return DenseInverse.read(spectrum, rhs, shifts)
        assert self.largest.high is not None
        tolerance = max(self.plan.tolerance / 10, 10 * torch.finfo(rhs.dtype).eps)
        inverse = INVERSE_SOLVERS[self.plan.inverse]
        solver = inverse(tolerance, self.plan.max_matvecs, deadline=self.clock.share(0.4))
        largest = self.largest.high * brackets.prior.largest
        solution = self._counted(solver.solve(brackets.operator, rhs, shifts, largest))
        return solution if bool((shifts > 0).all()) else self._graded_without_shift(solver, solution)

    def _graded_without_shift(self, solver: InverseSolver, solution: Solution) -> Solution:
        """Grade a solve with H itself by how well the same solver gets a known answer back.

        b = J^T delta lies in the range of H, so an iteration never meets H's null space, however large,
        and its small residual says nothing of it. A random w does: H z = H w gives z = w only where H
        is regular and the solver reaches every direction.
        """
        if not any(status == "converged" for status in solution.status):
            return solution
        assert self.largest.high is not None
        answer = self._draw(0)
        zero = torch.zeros_like(self.largest.high)
        probe = self._counted(solver.solve(self.hessian, self.hessian.matvec(answer), zero, self.largest.high))
        distance = (probe.value - answer).norm(dim=-1) / answer.norm(dim=-1).clamp_min(1e-30)
        lost = (distance > PROBE_TOLERANCE).tolist()
        return replace(solution, status=tuple(map(_grade, solution.status, probe.status, lost)))

    def _counted(self, solution: Solution) -> Solution:
        self._matvecs += int(solution.matvecs.sum())
        return solution
