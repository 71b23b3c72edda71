"""``gauss-newton``: the MAP attacker by Levenberg-Marquardt, whose error the posterior foretells.

Minimises ||r(x) - obs||^2 / sigma^2 + (x - mu)^T C^-1 (x - mu), the negative log posterior under Gaussian noise
and prior (Balunovic et al., ICLR 2022, with the Gaussian prior; docs/theory.md, section 6). Where the release has no
noise, only the first term. Laplace noise is treated as the Gaussian noise of the same Fisher information.

One descent from the prior's mean is enough for smooth networks (of samples of one class in an upload from near it, or
they would stay alike). Where its residual is larger than the noise explains, which the attacker sees, it goes on for
that sample alone: where the network has kinks, such as those of ReLU, with the same network rounded off over widths
that go to 0 (`optimise.smoothing`), since its release jumps where a unit switches; then by noise continuation: what is
left unexplained counts as noise, so that the prior weighs as much more, and its weight goes down to the true one as the
residual falls (as a Levenberg-Marquardt damping in proportion to the squared residual: Yamashita and Fukushima,
Computing Suppl. 15, 2001); then in rounds, likewise from random starts, then by descents from starts scattered ever
more closely around the best point so far (basin hopping, Wales and Doye, J. Phys. Chem. A 1997).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, Effort, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.optimise.levenberg_marquardt import (
    PROBED_PRODUCTS,
    PROBED_REST,
    MatchingProblem,
    State,
    StoppingRule,
    status_of,
)
from riskaudit.attacks.optimise.plain_coordinates import determined, needs_plain_coordinates
from riskaudit.attacks.optimise.smoothing import SHARES, rounded_off, widest_kinks
from riskaudit.attacks.optimise.starts import apart
from riskaudit.attacks.plausibility import noise_floor

# Spread of the starts of each round after the first descent, in the prior's standard deviations.
SPREADS = (1.0, 0.3, 0.1, 0.03)
# Products of descents that are not stuck, as shares of all that their steps may take: from untrained networks, with
# a dozen short steps, to releases that tell little.
LEAST_SHARE, LARGEST_SHARE = 1 / 60, 1 / 4
# In noise continuation the noise is taken for so much smaller than the residual, or the prior would hold it there.
RESIDUAL_SHARE = 1 / 1.3
# Continuation has come to its end where so many stages in a row leave more than this of the squared residual.
IDLE_STAGES, LARGEST_IDLE = 5, 0.98


@register
@final
@dataclass(frozen=True)
class GaussNewton(Attack):
    """Levenberg-Marquardt with truncated conjugate gradient.

    Attributes:
        steps: Levenberg-Marquardt steps per start, rejected ones included.
        restarts: starts per sample in each round after the first descent and continuation; 1 for no rounds.
        rounds: rounds at most, for samples whose residual isn't explained yet.
        products: of conjugate gradient per step at most.
        forcing: largest relative residual of a step's linear system.
        tolerance: see `StoppingRule`.
        stages: of noise continuation at most, each with its weight of the prior; 0 without it.
        stage_steps: steps per stage, of no more than ``steps``.
        smooth_steps: steps per stage of continuation over smoothed kinks; 0 without it.
        smooth_products: of conjugate gradient per step of those stages at most, and of the descent that follows.
        use_prior: whether the prior's term counts; None where the release has noise.
    """

    name: ClassVar[str] = "gauss-newton"
    title: ClassVar[str] = "Gauss-Newton (MAP)"
    source: ClassVar[str] = "derived: Levenberg-Marquardt on the posterior of Balunovic et al., ICLR 2022"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "Second-order attack on the posterior's mode; the one whose error the proxies foretell."

    steps: int = 60
    restarts: int = 4
    rounds: int = 4
    products: int = 100
    forcing: float = 0.1
    tolerance: float = 1e-5
    stages: int = 60
    stage_steps: int = 10
    # Fewer steps or products leave uploads of several samples behind where their kinks are still wide.
    smooth_steps: int = 30
    smooth_products: int = 400
    use_prior: bool | None = None

    @property
    @override
    def effort(self) -> Effort:
        """In products with the Jacobian."""
        probe = replace(self, steps=1, restarts=1, products=min(PROBED_PRODUCTS, self.products), forcing=0.0)
        # One step explains nothing, and all that is done for samples that get stuck would follow.
        probe = replace(probe, stages=0, smooth_steps=0)
        descent = self.steps * (self.products + PROBED_REST)
        rounds = self.rounds if self.restarts > 1 else 0
        smooth = len(SHARES) * self.smooth_steps + self.steps if self.smooth_steps else 0
        smooth *= self.smooth_products + PROBED_REST
        # Noise continuation from the prior's mean, and from each start of the first round beside its descent.
        staged = self.stages * self.stage_steps * (self.products + PROBED_REST)
        continued = staged + descent + (self.restarts * staged if rounds else 0)
        return Effort(
            probe,
            done=probe.products + PROBED_REST,
            low=LEAST_SHARE * descent,
            high=LARGEST_SHARE * descent,
            most=descent * (1 + rounds * self.restarts) + smooth + continued,
        )

    @property
    def _limits(self) -> StoppingRule:
        """Of one descent."""
        return StoppingRule(self.steps, self.products, self.forcing, self.tolerance)

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        started = time.perf_counter()
        observation = with_labels(observation)
        noise = observation.release.noise
        sigma = 0.0 if noise is None else noise.fisher_std
        weighted = sigma > 0 if self.use_prior is None else self.use_prior
        weight = sigma * sigma if weighted else 0.0
        count, prior = len(observation), observation.bound_prior()
        problem = MatchingProblem(observation, prior, observation.released.new_full((count,), weight).double())
        best = self._first(problem, apart(observation, generator))
        self._improve_smoothly(problem, best, generator)
        self._improve_by_continuation(problem, best, generator)
        for number in range(self.rounds if self.restarts > 1 else 0):
            rows = _unexplained(problem, best)
            if not rows:
                break
            self._improve(problem, best, rows, number, generator)
        inputs = problem.inputs(best.point)
        if not weighted and observation.input_range is not None:
            # Without a prior, all that is known of the input is its range.
            inputs = inputs.clamp(*observation.input_range)
        return Reconstruction(
            inputs=observation.images(inputs),
            objective=2 * best.value / (sigma * sigma if sigma > 0 else 1.0),
            status=tuple(status_of(best, row) for row in range(count)),
            steps=best.steps,
            restarts=self.restarts,
            seconds=time.perf_counter() - started,
            targets=observation.known_targets,
        )

    def _first(self, problem: MatchingProblem, start: Tensor) -> State:
        """The descent from the prior's mean, in whichever coordinates are known to lead there soonest."""
        rows, found, limits = list[int](), None, self._limits
        if needs_plain_coordinates(problem):
            rows, found = determined(problem, start, 0.5 * noise_floor(problem.observation), limits)
        others = [row for row in range(len(start)) if row not in rows]
        if found is None or not rows:
            return problem.minimise(problem.start(start), limits)
        if not others:
            return found
        part = problem.select(others)
        return State.joined([(rows, found), (others, part.minimise(part.start(start[others]), limits))])

    def _improve_smoothly(self, problem: MatchingProblem, best: State, generator: torch.Generator) -> None:
        """Continuation over smoothed kinks for samples that got stuck, where the model has any."""
        rows = _unexplained(problem, best) if self.smooth_steps else []
        width = widest_kinks(problem.observation) if rows else None
        if width is None:
            return
        part = problem.select(rows)
        point = apart(part.observation, generator)
        limits = replace(self._limits, steps=self.smooth_steps, products=self.smooth_products)
        for share in SHARES:
            smooth = replace(part, observation=rounded_off(part.observation, share * width))
            # What rounding off does to the release counts as noise.
            error = smooth.released(point) - part.released(point)
            smooth = replace(smooth, weights=part.weights + error.double().square().mean(1))
            point = smooth.minimise(smooth.start(point), limits).point
        improved = part.minimise(part.start(point), replace(limits, steps=self.steps))
        _take_better(best, rows, improved)

    def _improve_by_continuation(self, problem: MatchingProblem, best: State, generator: torch.Generator) -> None:
        """Noise continuation from the prior's mean for samples that got stuck."""
        rows = _unexplained(problem, best) if self.stages else []
        if rows:
            part = problem.select(rows)
            _take_better(best, rows, self._continued(part, apart(part.observation, generator)))

    def _continued(self, problem: MatchingProblem, points: Tensor) -> State:
        """Where noise continuation from w [B, n d] leads; a plain descent without stages."""
        residuals, enough = _squared_residuals(problem, problem.start(points)), noise_floor(problem.observation)
        share = RESIDUAL_SHARE**2 / problem.observation.release.noisy_entries.sum()
        limits = replace(self._limits, steps=min(self.stage_steps, self.steps))
        working, idle = list(range(len(points))), [0] * len(points)
        for _ in range(self.stages):
            stage = problem.select(working)
            stage = replace(stage, weights=torch.maximum(stage.weights, share * residuals[working]))
            state = stage.minimise(stage.start(points[working]), limits)
            for row, before, after in zip(working, residuals[working], _squared_residuals(stage, state), strict=True):
                idle[row] = 0 if after < LARGEST_IDLE * before else idle[row] + 1
                residuals[row] = after
            points[working] = state.point
            working = [row for row in working if idle[row] < IDLE_STAGES and residuals[row] > enough[row]]
            if not working:
                break
        return problem.minimise(problem.start(points), self._limits)

    def _improve(
        self, problem: MatchingProblem, best: State, rows: list[int], number: int, generator: torch.Generator
    ) -> None:
        """One round of starts for some samples; what lowers F replaces the best."""
        repeated = [row for row in rows for _ in range(self.restarts)]
        part = problem.select(repeated)
        spread = SPREADS[min(number, len(SPREADS) - 1)]
        drawn = torch.randn(part.point_shape, generator=generator, dtype=torch.float64)
        starts = (spread * drawn).to(best.point)
        if number == 0:
            found = self._continued(part, starts)
        else:
            found = part.minimise(part.start(best.point[repeated] + starts), self._limits)
        _take_better(best, repeated, found)


def _take_better(best: State, rows: list[int], other: State) -> None:
    """What of another run, of the samples in ``rows``, lowers F replaces the best."""
    for index, row in enumerate(rows):
        # Not "not smaller": a start whose value isn't a number is no improvement.
        if bool(other.value[index] < best.value[row]):
            best.take(row, other, index)


def _unexplained(problem: MatchingProblem, best: State) -> list[int]:
    """Samples whose residual is larger than the noise explains: their descent got stuck."""
    # Not "larger": a value that isn't a number explains nothing.
    unexplained = ~(_squared_residuals(problem, best) <= noise_floor(problem.observation))
    return torch.nonzero(unexplained).flatten().tolist()


def _squared_residuals(problem: MatchingProblem, state: State) -> Tensor:
    """||r(x) - obs||^2 where a run is, [B], float64: F without the prior's share."""
    return 2 * state.value - problem.weights * state.point.double().square().sum(-1)
