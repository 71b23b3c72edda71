"""A release linearised at a batch of samples: what all proxies share, each piece computed once.

H = J^T J; sigma is the Fisher-equivalent std of the noise; eps = sigma^2 / tau^2 (THEORY, section 2).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from riskaudit.jacobian import GenericJacobian
from riskaudit.linalg import (
    EIGENVALUE_SOLVERS,
    INVERSE_SOLVERS,
    Dense,
    DenseInverse,
    GramOperator,
    InverseSolver,
    Lanczos,
    LanczosProcess,
    Power,
    RitzPairs,
    Solution,
    Spectrum,
)
from riskaudit.linalg.operators import DowndatedOperator
from riskaudit.priors import IsotropicPrior
from riskaudit.proxies.plan import Plan
from riskaudit.release import Batch, Release
from riskaudit.results import Status

NOISE_STREAM, START_STREAM = 0, 1
# A random vector has about sqrt(1 / d) of its length in any one direction.
PROBE_TOLERANCE = 1e-4


def sample_generator(seed: int, index: int, stream: int) -> torch.Generator:
    """A CPU generator of sample ``index``'s own, so that results don't depend on batches or devices."""
    state = np.random.SeedSequence([seed, index, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def _grade(own: Status, probe: Status, lost: bool) -> Status:
    """Status of a solve without shift, given its probe's and whether the known answer was lost in it."""
    if own != "converged":
        return own
    if probe != "converged":
        return "not_converged"
    return "singular" if lost else "converged"


class Linearisation:
    """J of a noisy release at B samples, with the prior and the solvers.

    ``matvecs`` counts products with H (for a dense spectrum, columns of J) over all samples so far.

    Args:
        release: with noise (an undefended one gets its reference noise first).
        batch: samples whose loss and release are finite.
        indices: the samples' positions in the audited data, which seed their random draws.
        prior: what the attacker knows beforehand.
        plan: solvers and limits.
        seed: of the whole audit.
    """

    def __init__(
        self, release: Release, batch: Batch, indices: list[int], prior: IsotropicPrior, plan: Plan, seed: int
    ) -> None:
        noise = release.noise
        assert noise is not None
        self.release, self.batch, self.prior, self.plan = release, batch, prior, plan
        self.indices, self.seed = indices, seed
        self.sigma = noise.fisher_std
        ratio = self.sigma / prior.std
        # Not ratio**2: floats raise OverflowError there instead of giving infinity.
        self.eps = ratio * ratio
        self.jacobian = GenericJacobian(release, batch)
        self.hessian = GramOperator(self.jacobian)
        self.dimension = self.jacobian.shape[1]
        self.matvecs = 0

    def __len__(self) -> int:
        return len(self.batch)

    @cached_property
    def mean(self) -> Tensor:
        """r(x), [B, P]."""
        return self.release.mean(self.batch)

    @cached_property
    def gradient_norm(self) -> Tensor:
        """||r(x)||, [B], float64."""
        norm: Tensor = self.mean.norm(dim=-1)
        return norm.double()

    @cached_property
    def cosine_vector(self) -> Tensor:
        """v = J^T rhat, [B, d]; 0 where r = 0."""
        norm: Tensor = self.mean.norm(dim=-1, keepdim=True)
        return self.jacobian.rmatvec(self.mean / norm.clamp_min(1e-30))

    @cached_property
    def pulled_noise(self) -> Tensor:
        """J^T delta for each sample's drawn noise, [B, d]."""
        drawn = [self.release.sample_noise(sample_generator(self.seed, index, NOISE_STREAM)) for index in self.indices]
        return self.jacobian.rmatvec(torch.stack(drawn))

    @cached_property
    def displacement(self) -> Tensor:
        """x - mu, [B, d]."""
        return self.prior.displacement(self.batch.inputs)

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """All of H's eigenvalues, where the plan affords them."""
        if "dense" not in (self.plan.solver, self.plan.inverse):
            return None
        spectrum = Spectrum.of(self.hessian)
        self.matvecs += spectrum.matvecs * len(self)
        return spectrum

    @cached_property
    def _start(self) -> Tensor:
        starts = [
            torch.randn(self.dimension, generator=sample_generator(self.seed, index, START_STREAM), dtype=torch.float64)
            for index in self.indices
        ]
        return torch.stack(starts).to(self.batch.inputs)

    @cached_property
    def krylov(self) -> LanczosProcess:
        """The Lanczos pass that l_1 and both LAVP losses are read off."""
        process = self._lanczos.run(self.hessian, self._start)
        self.matvecs += int(process.num_products.sum())
        return process

    @property
    def _lanczos(self) -> Lanczos:
        return Lanczos(self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)

    @cached_property
    def largest(self) -> Solution:
        """l_1 by the plan's solver."""
        if self.spectrum is not None:
            return Dense.read(self.spectrum)
        if self.plan.solver == "lanczos":
            return self._lanczos.read(self.krylov)
        solver = EIGENVALUE_SOLVERS[self.plan.solver](self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)
        return self._counted(solver.solve(self.hessian, self._start))

    @cached_property
    def smallest_ritz(self) -> Tensor | None:
        """An upper bound of l_d from the Lanczos pass, [B], float64."""
        return self.krylov.ritz().values[:, 0].clamp_min(0.0) if self.plan.solver == "lanczos" else None

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
    def downdated_ritz(self) -> RitzPairs | None:
        """Ritz pairs of H - v v^T from the same Lanczos pass."""
        return self.krylov.ritz_after_downdate(self.cosine_vector) if self.plan.solver == "lanczos" else None

    @cached_property
    def downdated_power(self) -> Solution:
        """Largest eigenvalue of H - v v^T by power iteration, which needs a pass of its own."""
        solver = Power(self.plan.tolerance, self.plan.max_matvecs, self.plan.failure)
        return self._counted(solver.solve(DowndatedOperator(self.hessian, self.cosine_vector), self._start))

    def solve(self, rhs: Tensor, shift: float) -> tuple[Solution, list[bool]]:
        """(H + shift)^-1 rhs by the plan's inverse, and which samples were worth trying.

        An iterative inverse that the user didn't ask for by name runs only on samples for which its
        products, foretold from l_1 and the shift, stay within the plan's limit.
        """
        shifts = torch.full((len(self),), shift, dtype=torch.float64, device=rhs.device)
        if self.spectrum is not None and self.plan.inverse == "dense":
            return DenseInverse.read(self.spectrum, rhs, shifts), [True] * len(self)
        affordable = [True] * len(self)
        if not self.plan.inverse_chosen:
            affordable = [count <= self.plan.max_matvecs for count in self.foretold_products(shift)]
            rhs = rhs * torch.tensor(affordable, device=rhs.device)[:, None]
        tolerance = max(self.plan.tolerance / 10, 10 * torch.finfo(rhs.dtype).eps)
        assert self.largest.high is not None
        solver = INVERSE_SOLVERS[self.plan.inverse](tolerance, self.plan.max_matvecs)
        solution = self._counted(solver.solve(self.hessian, rhs, shifts, self.largest.high))
        if shift == 0:
            solution = self._graded_without_shift(solver, solution, affordable)
        return solution, affordable

    def _graded_without_shift(self, solver: InverseSolver, solution: Solution, affordable: list[bool]) -> Solution:
        """Grade a solve with H itself by how well the same solver gets a known answer back.

        b = J^T delta lies in the range of H, so an iteration never meets H's null space, however large,
        and its small residual says nothing of it. A random w does: H z = H w gives z = w only where H
        is regular and the solver reaches every direction.
        """
        if not any(state == "converged" for state in solution.status):
            return solution
        assert self.largest.high is not None
        tried = torch.tensor(affordable, device=self._start.device)
        known = self._start * tried[:, None]
        zero = torch.zeros_like(self.largest.high)
        probe = self._counted(solver.solve(self.hessian, self.hessian.matvec(known), zero, self.largest.high))
        distance = (probe.value - known).norm(dim=-1) / known.norm(dim=-1).clamp_min(1e-30)
        lost = (distance > PROBE_TOLERANCE).tolist()
        return replace(solution, status=tuple(map(_grade, solution.status, probe.status, lost)))

    def _counted(self, solution: Solution) -> Solution:
        self.matvecs += int(solution.matvecs.sum())
        return solution

    def foretold_products(self, shift: float) -> list[float]:
        """Products after which conjugate gradient is sure to converge, per sample; infinite without a shift.

        The classical bound: sqrt(kappa) / 2 ln(2 / tolerance), kappa = (l_1 + shift) / shift.
        """
        if shift == 0:
            return [float("inf")] * len(self)
        assert self.largest.high is not None
        kappa = (self.largest.high + shift) / shift
        return (kappa.sqrt() / 2 * float(np.log(2 / self.plan.tolerance))).tolist()
