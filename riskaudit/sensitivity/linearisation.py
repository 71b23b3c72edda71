"""A release linearised at a batch of samples: what all proxies share, each piece computed once.

H = J^T J; sigma is the Fisher-equivalent std of the noise; eps = sigma^2 / tau^2 (docs/theory.md, section 2). With a
correlated prior of covariance C = L L^T the posterior is read off K = L H L at the shift sigma^2, and everything
that has no prior in it off H as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from riskaudit.jacobian import Jacobian
from riskaudit.linalg import (
    EIGENVALUE_SOLVERS,
    INVERSE_SOLVERS,
    Dense,
    DenseInverse,
    InverseSolver,
    KrylovSpace,
    Power,
    Solution,
    Spectrum,
)
from riskaudit.linalg.operators import DowndatedOperator
from riskaudit.priors import BoundPrior, Prior, WhitenedOperator
from riskaudit.results import Status
from riskaudit.sensitivity.brackets import Brackets
from riskaudit.sensitivity.information import (
    SMALLEST_SHIFT,
    BracketedCorrelatedInformation,
    BracketedInformation,
    CorrelatedInformation,
    ExactInformation,
    Information,
)
from riskaudit.sensitivity.plan import Clock, Plan
from riskaudit.sensitivity.posterior_brackets import PosteriorBrackets
from riskaudit.sensitivity.posterior_spectrum import PosteriorSpectrum
from riskaudit.statistics.seeding import derived_seed

# The start of the first iteration is stream 1; that of the i-th probe is stream 1 + i.
NOISE_STREAM, START_STREAM = 0, 1
# A random vector has about sqrt(1 / d) of its length in any one direction.
PROBE_TOLERANCE = 1e-4


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


def _grade(own: Status, probe: Status, lost: bool) -> Status:
    """Status of a solve without shift, given its probe's and whether the known answer was lost in it."""
    if own != "converged":
        return own
    if probe != "converged":
        return "not_converged"
    return "singular" if lost else "converged"


class Linearisation:
    """J of a noisy release at B samples, with the prior and the solvers.

    Args:
        jacobian: of a release with noise (an undefended one gets its reference noise first), at samples whose
            loss and release are finite.
        indices: the samples' positions in the audited data, which seed their random draws.
        prior: what the attacker knows beforehand.
        plan: solvers and limits.
        seed: of the whole audit.
        clock: the time that the batch may take.
        draw: of standard normal vectors [B, d], in the place of draws from the seed.
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
    ) -> None:
        noise = jacobian.release.noise
        assert noise is not None
        self.jacobian, self.release, self.batch = jacobian, jacobian.release, jacobian.batch
        self.plan, self.clock = plan, clock or Clock()
        self.indices, self.seed, self._given_draw = indices, seed, draw
        self.sigma = noise.fisher_std
        flat = self.batch.inputs.flatten(1)
        self._prior_in = partial(prior.bind, self.batch.targets)
        self.prior: BoundPrior = self._prior_in(flat)
        self.tau = self.prior.isotropic_std
        # With a correlated prior eps only says where brackets of H are aimed.
        ratio = self.sigma / (float(self.prior.variance.mean()) ** 0.5 if self.tau is None else self.tau)
        # Not ratio**2: floats raise OverflowError there instead of giving infinity.
        self.eps = ratio * ratio
        self.hessian = jacobian.hessian()
        self.dimension = jacobian.shape[1]
        self._matvecs = 0

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def matvecs(self) -> int:
        """Products with H (for a dense spectrum, columns of J) over all samples so far."""
        if self._all_eigenvalues:
            return self._matvecs
        return self._matvecs + self.brackets.matvecs + self.posterior_brackets.matvecs

    @cached_property
    def gradient_norm(self) -> Tensor:
        """||r(x)||, [B], float64."""
        return self.jacobian.norms

    @cached_property
    def cosine_vector(self) -> Tensor:
        """v = J^T rhat, [B, d]; 0 where r = 0."""
        return self.jacobian.pull_mean()

    @cached_property
    def pulled_noise(self) -> Tensor:
        """J^T delta for each sample's drawn noise, [B, d]."""
        return self.jacobian.pull_each(
            lambda place: self.release.sample_noise(sample_generator(self.seed, self.indices[place], NOISE_STREAM))
        )

    @cached_property
    def displacement(self) -> Tensor:
        """x - mu, [B, d]."""
        return self.batch.inputs.flatten(1) - self.prior.mean

    @property
    def prior_rmse(self) -> list[float]:
        """The error of a guess at the prior's mean, sqrt(tr C / d), per sample."""
        return [self.tau] * len(self) if self.tau is not None else self.prior.variance.sqrt().tolist()

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """All of H's eigenvalues, where the plan affords them."""
        if not self._all_eigenvalues:
            return None
        spectrum = Spectrum.of(self.hessian)
        self._matvecs += spectrum.matvecs * len(self)
        return spectrum

    @property
    def _all_eigenvalues(self) -> bool:
        return "dense" in (self.plan.solver, self.plan.inverse)

    @cached_property
    def brackets(self) -> Brackets:
        """What Lanczos iterations certify, where not all eigenvalues are known."""
        eps, least = max(self.eps, SMALLEST_SHIFT), self.jacobian.smallest_eigenvalue_bound
        return Brackets(self.hessian, self.plan, eps, least, self._draw, self.clock)

    @cached_property
    def posterior_spectrum(self) -> PosteriorSpectrum | None:
        """All of K's eigenvalues, where the prior is correlated and the plan affords them."""
        if self.spectrum is None or self.tau is not None:
            return None
        return PosteriorSpectrum.of(self.spectrum, self._prior_in(self.spectrum.values))

    @cached_property
    def posterior_brackets(self) -> PosteriorBrackets:
        """What Lanczos iterations on K certify, where the prior is correlated and not all eigenvalues are known."""
        return PosteriorBrackets(self.brackets, self.prior, max(self.sigma * self.sigma, SMALLEST_SHIFT))

    @cached_property
    def information(self) -> list[Information] | None:
        """What each sample's release tells at any noise; None where the plan can't say."""
        if self.spectrum is None and self.plan.solver != "lanczos":
            return None
        if self.tau is None:
            return self._correlated_information
        if self.spectrum is not None:
            return [ExactInformation(values, self.tau) for values in self.spectrum.values.cpu().numpy()]
        return [BracketedInformation(traces, self.tau) for traces in self.brackets.traces]

    @property
    def _correlated_information(self) -> list[Information]:
        found = self.posterior_spectrum
        if found is not None:
            pairs = zip(found.values.cpu().numpy(), found.weights.cpu().numpy(), strict=True)
            return [CorrelatedInformation(values, weights) for values, weights in pairs]
        return [BracketedCorrelatedInformation(traces, self.dimension) for traces in self.posterior_brackets.traces]

    def covariance_eigenvalues(self, index: int) -> np.ndarray | None:
        """All eigenvalues of one sample's posterior covariance, [d], float64; None where they aren't known."""
        if self.spectrum is None:
            return None
        if self.posterior_spectrum is not None:
            return self.posterior_spectrum.covariance_eigenvalues(index, self.sigma * self.sigma).cpu().numpy()
        assert self.tau is not None
        gain = min(self.tau / self.sigma, 1e150)
        return self.tau * self.tau / (1 + self.spectrum.values[index].cpu().numpy() * gain * gain)

    @property
    def _draw(self) -> Callable[[int], Tensor]:
        """Draws standard normal vectors [B, d], the i-th of each sample's own; holds no reference to this."""
        return self._given_draw or partial(_draw, self.seed, self.indices, self.batch.inputs.flatten(1))

    @cached_property
    def largest(self) -> Solution:
        """l_1 by the plan's solver."""
        if self.spectrum is not None:
            return Dense.read(self.spectrum)
        if self.plan.solver == "lanczos":
            return self.brackets.largest
        solver = EIGENVALUE_SOLVERS[self.plan.solver](self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)
        return self._counted(solver.solve(self.hessian, self._draw(0)))

    @cached_property
    def smallest_ritz(self) -> Tensor | None:
        """An upper bound of l_d from the Lanczos pass, [B], float64; infinite without a product."""
        return self._smallest_ritz(self.brackets.spaces) if self.plan.solver == "lanczos" else None

    def _smallest_ritz(self, spaces: list[KrylovSpace]) -> Tensor:
        every = [space.tridiagonal.ritz().values for space in spaces]
        smallest = [max(0.0, float(values[0])) if len(values) else float("inf") for values in every]
        return torch.tensor(smallest, dtype=torch.float64, device=self.batch.inputs.device)

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
        """Largest eigenvalue of H - v v^T by the plan's solver, and an upper bound of the smallest [B], if known.

        A pass of its own, since only one on the operator itself certifies how far its eigenvalues may reach.
        """
        if self.plan.solver == "lanczos":
            spaces, largest = self.brackets.downdated(self.cosine_vector)
            return largest, self._smallest_ritz(spaces)
        solver = Power(self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)
        operator = DowndatedOperator(self.hessian, self.cosine_vector)
        return self._counted(solver.solve(operator, self._draw(0))), None

    def solve(self, rhs: Tensor, shift: float) -> Solution:
        """(H + shift)^-1 rhs by the plan's inverse, which isn't "quadrature"."""
        shifts = torch.full((len(self),), shift, dtype=torch.float64, device=rhs.device)
        if self.spectrum is not None and self.plan.inverse == "dense":
            return DenseInverse.read(self.spectrum, rhs, shifts)
        assert self.largest.high is not None
        solver = self._inverse_solver(rhs.dtype)
        solution = self._counted(solver.solve(self.hessian, rhs, shifts, self.largest.high))
        return self._graded_without_shift(solver, solution) if shift == 0 else solution

    def solve_whitened(self, rhs: Tensor, shift: float) -> Solution:
        """(K + shift)^-1 rhs by an iterative inverse."""
        assert self.largest.high is not None
        shifts = torch.full((len(self),), shift, dtype=torch.float64, device=rhs.device)
        operator, largest = WhitenedOperator(self.hessian, self.prior), self.largest.high * self.prior.largest
        return self._counted(self._inverse_solver(rhs.dtype).solve(operator, rhs, shifts, largest))

    def _inverse_solver(self, dtype: torch.dtype) -> InverseSolver:
        tolerance = max(self.plan.tolerance / 10, 10 * torch.finfo(dtype).eps)
        return INVERSE_SOLVERS[self.plan.inverse](tolerance, self.plan.max_matvecs, deadline=self.clock.share(0.4))

    def _graded_without_shift(self, solver: InverseSolver, solution: Solution) -> Solution:
        """Grade a solve with H itself by how well the same solver gets a known answer back.

        b = J^T delta lies in the range of H, so an iteration never meets H's null space, however large,
        and its small residual says nothing of it. A random w does: H z = H w gives z = w only where H
        is regular and the solver reaches every direction.
        """
        if not any(state == "converged" for state in solution.status):
            return solution
        assert self.largest.high is not None
        known = self._draw(0)
        zero = torch.zeros_like(self.largest.high)
        probe = self._counted(solver.solve(self.hessian, self.hessian.matvec(known), zero, self.largest.high))
        distance = (probe.value - known).norm(dim=-1) / known.norm(dim=-1).clamp_min(1e-30)
        lost = (distance > PROBE_TOLERANCE).tolist()
        return replace(solution, status=tuple(map(_grade, solution.status, probe.status, lost)))

    def _counted(self, solution: Solution) -> Solution:
        self._matvecs += int(solution.matvecs.sum())
        return solution
