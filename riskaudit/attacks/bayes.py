"""``bayes``: the approximate Bayes-optimal adversary: the release's own likelihood and a prior.

Balunovic, Dimitrov, Staab and Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022, Algorithm 1: maximise
log p(obs | z) + beta log p(z), averaged over k points of a ball around the guess, by Adam. As in the authors' code
beta moves geometrically from a tenth to its final value, so that the prior comes in once the likelihood is met.

Likelihood and prior may each be replaced by a wrong one, which shows what knowing the right one is worth (Figure 4).

With delta = 0 the guess is the mode of the posterior. Points are drawn once per guess, in opposite pairs: the
objective stays comparable from step to step, and a symmetric posterior keeps its centre.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

import torch
from typing_extensions import override

from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.matching import NegativeLogLikelihood
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.objectives import ANNEALED, Objective, Term
from riskaudit.attacks.optimise.regularisers import (
    GaussianPenalty,
    LaplacePenalty,
    PixelRange,
    TotalVariation,
    has_pixels,
)
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start, in_ball
from riskaudit.errors import SettingsError

PriorKind: TypeAlias = Literal["tv", "range", "gaussian", "laplace"]
LikelihoodKind: TypeAlias = Literal["release", "gaussian", "laplace"]

# A density of absolute differences exp(-|difference| / scale): typical of pixels in [0, 1].
DIFFERENCE_SCALE = 0.1
# Coordinates outside their range are as unlikely as a normal deviation of this std, data units.
RANGE_STD = 0.01


@register
@final
@dataclass(frozen=True)
class BayesOptimal(Attack):
    """Minimise -log p(obs | z) - beta log p(z).

    Attributes:
        steps: of Adam at most.
        restarts: random starts per sample.
        rate: step size in the prior's standard deviations.
        prior: "tv", neighbouring pixels differ by Laplace(0.1), for inputs that aren't images "gaussian"; "gaussian",
            the observation's own; "laplace", independent coordinates with its mean and standard deviation; "range",
            uniform in the range of the inputs.
        beta: weight of log p(z); 1 is the posterior itself.
        first_beta: where the weight begins.
        num_points: k, even; 1 with delta = 0.
        delta: radius of the ball as a root mean square per coordinate, data units.
        likelihood: "release", the release's own; "gaussian" or "laplace", noise of its standard deviation by this law.
        reference_std: of the noise that stands in for a release without any.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "bayes"
    title: ClassVar[str] = "Bayes-optimal adversary"
    source: ClassVar[str] = "Balunovic et al., ICLR 2022"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "The release's own likelihood with a prior, by Adam."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = ({}, {"beta": 0.1}, {"prior": "gaussian"}, {"rate": 0.1})

    steps: int = 2000
    restarts: int = 1
    rate: float = 0.3
    prior: PriorKind = "tv"
    beta: float = 1.0
    first_beta: float = 0.1
    num_points: int = 1
    delta: float = 0.0
    likelihood: LikelihoodKind = "release"
    reference_std: float = 1e-3
    start: Start = "gaussian"

    def __post_init__(self) -> None:
        if self.delta > 0 and (self.num_points < 2 or self.num_points % 2):
            raise SettingsError(f"expected an even number of points in the ball, found {self.num_points}")
        if not (self.beta > 0 and self.first_beta > 0):
            raise SettingsError(f"expected weights above 0, found {self.beta:g} and {self.first_beta:g}")

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        kind = self._kind(observation)
        rows, offsets = len(observation) * self.restarts, None
        if self.delta > 0:
            drawn = in_ball(rows, observation.upload_dimension, self.num_points, self.delta, generator)
            offsets = drawn.to(observation.released)
        # These priors know of no box, and the posterior would be another one with it.
        box = None if kind in ("gaussian", "laplace") else observation.input_range
        law = None if self.likelihood == "release" else self.likelihood
        matching = NegativeLogLikelihood(self.reference_std, law)
        return reconstruct(
            observation,
            generator,
            lambda labelled: Objective.of(labelled, self.restarts, matching, self._terms(kind), offsets=offsets),
            # The normalisation of the likelihood makes the objective large: a share of it is a coarse measure.
            Descent(self.steps, self.rate, schedule="steps", box=box, tolerance=1e-6, settled=ANNEALED),
            self.start,
            self.restarts,
        )

    def _kind(self, observation: Observation) -> PriorKind:
        if self.prior == "range" and observation.input_range is None:
            raise AttackNotApplicable("the prior 'range' needs a known range of the inputs")
        return "gaussian" if self.prior == "tv" and not has_pixels(observation.input_shape) else self.prior

    def _terms(self, kind: PriorKind) -> tuple[Term, ...]:
        beta, first = self.beta, self.first_beta
        if kind == "gaussian":
            return (Term(GaussianPenalty(), beta, first),)
        if kind == "laplace":
            return (Term(LaplacePenalty(), beta, first),)
        if kind == "tv":
            return (Term(TotalVariation("sum"), beta / DIFFERENCE_SCALE, first / DIFFERENCE_SCALE),)
        return (Term(PixelRange(), beta / (2 * RANGE_STD**2)),)
