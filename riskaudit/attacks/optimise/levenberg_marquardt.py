"""Levenberg-Marquardt on the release, batched: the engine of ``gauss-newton`` and ``local``.

Minimises F(w) = ||r(mu + L w) - obs||^2 / 2 + weight ||w||^2 / 2 over w, where weight = sigma^2 makes it the
MAP problem with prior N(mu, L L^T) times sigma^2 and weight = 0 plain least squares. A step solves
(K + weight + damping) s = -gradient with K = L H L by truncated conjugate gradient on the Jacobian's products,
preconditioned by K at an earlier point once that pays; the damping follows the ratio of actual to predicted decrease
(Nielsen, IMM-REP-1999-05). Samples that are finished leave between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from riskaudit.attacks.base import Observation
from riskaudit.attacks.optimise.curvature import EarlierCurvature
from riskaudit.jacobian import Jacobian
from riskaudit.linalg.solvers.truncated_cg import Preconditioner, truncated_cg
from riskaudit.priors import BoundPrior, WhitenedOperator
from riskaudit.results import Status

# First damping relative to the curvature along the gradient.
FIRST_DAMPING = 1e-2
# Ratio of actual to predicted decrease above which a step is taken.
ACCEPTED_RATIO = 1e-3
# Damping, relative to the first one, beyond which no step will be found.
LARGEST_DAMPING = 1e12
# Of a short run's only step; beside them, that step takes about so many more.
PROBED_PRODUCTS, PROBED_REST = 10, 3
# Keeps quotients finite.
TINY = 1e-300


@dataclass(frozen=True)
class StoppingRule:
    """When a Levenberg-Marquardt run stops.

    Attributes:
        steps: per sample at most, rejected ones included.
        products: of conjugate gradient per step at most.
        forcing: largest relative residual of a step's linear system; it tightens as the gradient falls.
        tolerance: a sample is finished once a step promises to lower 2 F / noise^2 by less than this times d, noise
            being that of the observation (without noise: once a step moves by less than this, as a share of the
            prior's spread).
    """

    steps: int
    products: int
    forcing: float
    tolerance: float


@dataclass
class State:
    """Where the samples of a run are: w and F(w), and whether they are finished. Rows are all samples, [B, ...].

    Attributes:
        point: w, [B, d].
        value: F(w), [B], float64.
        converged: [B], bool.
        steps: taken so far, rejected ones included, [B].
    """

    point: Tensor
    value: Tensor
    converged: Tensor
    steps: Tensor
    _stuck: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._stuck = torch.zeros_like(self.converged)

    @property
    def working(self) -> list[int]:
        """Samples that are neither finished nor stuck."""
        return torch.nonzero(~(self.converged | self._stuck)).flatten().tolist()

    @classmethod
    def joined(cls, parts: Sequence[tuple[list[int], State]]) -> State:
        """One run from runs of some samples each, with the samples' rows."""
        rows = [row for places, _ in parts for row in places]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        states = [state for _, state in parts]
        joined = cls(
            *(
                torch.cat([getattr(state, name) for state in states])[order]
                for name in ("point", "value", "converged", "steps")
            )
        )
        joined._stuck = torch.cat([state._stuck for state in states])[order]
        return joined

    def select(self, rows: list[int]) -> State:
        """The run of some samples."""
        part = State(self.point[rows], self.value[rows], self.converged[rows], self.steps[rows])
        part._stuck = self._stuck[rows]
        return part

    def take(self, row: int, other: State, other_row: int) -> None:
        """Replace a sample by one of another run; its steps are those of that run."""
        self.point[row], self.value[row] = other.point[other_row], other.value[other_row]
        self.converged[row] = other.converged[other_row]
        self._stuck[row], self.steps[row] = other._stuck[other_row], other.steps[other_row]

    def give_up(self, rows: list[int]) -> None:
        """No step lowers F for these samples any more."""
        self._stuck[rows] = True


@dataclass(frozen=True, eq=False)
class MatchingProblem:
    """The problem of B observations.

    Attributes:
        observation: with labels.
        prior: what w is measured in, at the samples.
        weights: of ||w||^2 / 2 in F, [B], float64.
    """

    observation: Observation
    prior: BoundPrior
    weights: Tensor

    @property
    def sigma(self) -> float:
        """Std of the Gaussian noise with the same Fisher information as the release's; 0 without noise."""
        noise = self.observation.release.noise
        return 0.0 if noise is None else noise.fisher_std

    @property
    def point_shape(self) -> tuple[int, int]:
        """Shape of w, (B, n d)."""
        return len(self.observation), self.observation.upload_dimension

    def select(self, rows: list[int]) -> MatchingProblem:
        """The problem of some samples; one may occur several times."""
        return MatchingProblem(self.observation.select(rows), self.prior.select(rows), self.weights[rows])

    def inputs(self, point: Tensor) -> Tensor:
        """Mu + L w, [B, d]."""
        return self.prior.mean + self.prior.root(point)

    def start(self, point: Tensor) -> State:
        """A run that begins at w [B, d]."""
        value, _, _ = self._at(point, list(range(len(point))))
        return State(
            point.clone(),
            value,
            torch.zeros(len(point), dtype=torch.bool, device=point.device),
            torch.zeros(len(point), dtype=torch.long, device=point.device),
        )

    def released(self, point: Tensor) -> Tensor:
        """R at w, [B, P'], without graph."""
        return self.observation.at(self.inputs(point)).mean().detach()

    def minimise(self, state: State, limits: StoppingRule) -> State:
        """Levenberg-Marquardt until every sample is finished, stuck or out of steps; changes the state given."""
        damping, curvature = Damping(state.value), EarlierCurvature(*self.point_shape)
        for _ in range(limits.steps):
            rows = state.working
            if not rows:
                break
            self._step(state, rows, damping, curvature, limits)
        return state

    def _step(
        self, state: State, rows: list[int], damping: Damping, curvature: EarlierCurvature, limits: StoppingRule
    ) -> None:
        """One step for the samples in ``rows``, taken where it lowers F."""
        point = state.point[rows]
        value, residual, jacobian = self._at(point, rows)
        part = _Part(self, rows, point, jacobian)
        gradient = part.gradient(residual)
        damping.begin(rows, part, gradient)
        lam = damping.value[rows]
        shift = (lam + self.weights[rows]).to(point.dtype)
        forcing = damping.forcing(rows, gradient, limits.forcing).to(point.dtype)
        curvature.refresh(rows, part.operator)
        precondition = self._in_time(curvature.preconditioner(rows, shift))
        step, image, products = truncated_cg(part.operator, -gradient, shift, forcing, limits.products, precondition)
        curvature.pay(rows, products)
        # Decrease of the quadratic model, without the damping's own share.
        moved = step.double().square().sum(-1)
        along = (step * (gradient + 0.5 * image)).sum(-1).double()
        promised = -along + 0.5 * lam * moved
        trial = point + step
        trial_value, _, _ = self._at(trial, rows)
        ratio = torch.where(
            promised > 0, (value - trial_value) / promised.clamp_min(TINY), torch.full_like(promised, -1.0)
        )
        taken = (ratio > ACCEPTED_RATIO) & torch.isfinite(trial_value)
        state.point[rows] = torch.where(taken[:, None], trial, point)
        state.value[rows] = torch.where(taken, trial_value, value)
        state.steps[rows] += 1
        state.converged[rows] = damping.is_calm(rows) & self._negligible(rows, promised, lam, moved, limits.tolerance)
        damping.update(rows, ratio, taken)
        state.give_up(damping.hopeless(rows))

    def _in_time(self, precondition: Preconditioner | None) -> Preconditioner | None:
        """The preconditioner, which is asked for beside every product, with a look at the clock."""
        if self.observation.deadline is None:
            return precondition
        exact = torch.clone if precondition is None else precondition

        def checked(remainder: Tensor) -> Tensor:
            self.observation.check_time()
            return exact(remainder)

        return checked

    def _negligible(
        self, rows: list[int], promised: Tensor, damping: Tensor, moved: Tensor, tolerance: float
    ) -> Tensor:
        """Whether what a step promises, or without noise how far it goes, no longer matters.

        Where the prior weighs, the step without damping promises at most 1 + damping / weight times as much, since
        (K + weight)^-1 is at most so many times (K + weight + damping)^-1.
        """
        d, weights = self.observation.upload_dimension, self.weights[rows]
        if self.sigma > 0:
            undamped = torch.where(weights > 0, promised * (1 + damping / weights.clamp_min(TINY)), promised)
            return 2 * undamped <= tolerance * self.sigma * self.sigma * d
        return moved <= tolerance * tolerance * d

    def _at(self, point: Tensor, rows: list[int]) -> tuple[Tensor, Tensor, Jacobian]:
        """F(w), r - obs and the Jacobian at w for some samples."""
        whole = len(rows) == len(self.observation)
        observation = self.observation if whole else self.observation.select(rows)
        prior = self.prior if whole else self.prior.select(rows)
        jacobian = observation.at(prior.mean + prior.root(point))
        residual = jacobian.mean().detach() - observation.released
        value = 0.5 * residual.double().square().sum(-1)
        value = value + 0.5 * self.weights[rows] * point.double().square().sum(-1)
        # What isn't a number compares with nothing; infinite, it loses to everything.
        return value.nan_to_num(nan=torch.inf, posinf=torch.inf), residual, jacobian


@final
class Damping:
    """How strongly each sample's steps are held back, by Nielsen's rule (IMM-REP-1999-05).

    Args:
        values: F of all samples, for their number and device.
    """

    def __init__(self, values: Tensor) -> None:
        self.value, self._first = torch.zeros_like(values), torch.zeros_like(values)
        self._growth = torch.full_like(values, 2.0)
        self._first_norm = torch.zeros_like(values)

    def begin(self, rows: list[int], part: _Part, gradient: Tensor) -> None:
        """Set the first damping of samples that have none, from the curvature along their gradient."""
        fresh = self._first[rows] == 0
        if not bool(fresh.any()):
            return
        curvature = FIRST_DAMPING * part.curvature(gradient)
        self._first[rows] = torch.where(fresh, curvature, self._first[rows])
        self.value[rows] = torch.where(fresh, curvature, self.value[rows])
        self._first_norm[rows] = torch.where(fresh, gradient.norm(dim=-1).double(), self._first_norm[rows])

    def forcing(self, rows: list[int], gradient: Tensor, largest: float) -> Tensor:
        """Relative residual at which the step's linear system is solved well enough, [B].

        The square root of the gradient's fall: superlinear near the end (Dembo, Eisenstat and Steihaug, 1982).
        """
        fall = gradient.norm(dim=-1).double() / self._first_norm[rows].clamp_min(TINY)
        forcing: Tensor = fall.sqrt().clamp_max(largest)
        return forcing

    def is_calm(self, rows: list[int]) -> Tensor:
        """Whether steps are hardly held back: a strongly damped one promises little for no reason."""
        return self.value[rows] <= self._first[rows]

    def update(self, rows: list[int], ratio: Tensor, taken: Tensor) -> None:
        """Less damping after a step that kept its promise, ever more after one that didn't."""
        calmer = (1 - (2 * ratio.clamp(-1, 2) - 1) ** 3).clamp_min(1 / 5)
        growth = self._growth[rows]
        self.value[rows] = self.value[rows] * torch.where(taken, calmer, growth)
        self._growth[rows] = torch.where(taken, torch.full_like(growth, 2.0), 2 * growth)

    def hopeless(self, rows: list[int]) -> list[int]:
        """Samples for which no step will be found."""
        lost = (self.value[rows] > LARGEST_DAMPING * self._first[rows]).tolist()
        return [row for row, given_up in zip(rows, lost, strict=True) if given_up]


class _Part:
    """Derivatives of F at the samples that are still at work."""

    def __init__(self, problem: MatchingProblem, rows: list[int], point: Tensor, jacobian: Jacobian) -> None:
        self.prior = problem.prior.select(rows)
        self.weights, self.point, self.jacobian = problem.weights[rows], point, jacobian
        self.operator = WhitenedOperator(jacobian.hessian(), self.prior)

    def gradient(self, residual: Tensor) -> Tensor:
        """L J^T (r - obs) + weight w, [B, d]."""
        return self.prior.root(self.jacobian.rmatvec(residual)) + self.weights[:, None].to(self.point) * self.point

    def curvature(self, direction: Tensor) -> Tensor:
        """Rayleigh quotient of K, [B], float64; 1 where the direction is 0."""
        squared = direction.double().square().sum(-1)
        along = (direction * self.operator.matvec(direction)).sum(-1).double()
        return torch.where(squared > 0, along / squared.clamp_min(TINY), torch.ones_like(squared)).clamp_min(TINY)


def status_of(state: State, row: int) -> Status:
    """Of one sample: finished, out of steps or stuck, or never finite."""
    if not bool(torch.isfinite(state.value[row])):
        return "failed"
    return "converged" if bool(state.converged[row]) else "not_converged"
