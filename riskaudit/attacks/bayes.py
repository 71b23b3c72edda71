"""``bayes``: the approximate Bayes-optimal adversary: the release's own likelihood and a prior.

Balunovic, Dimitrov, Staab and Vechev, "Bayesian Framework for Gradient Leakage", ICLR 2022, Algorithm 1: maximise
log p(obs | z) + beta log p(z), averaged over k points of a ball around the guess, by Adam with exponential decay of
the step size. The points are drawn anew at every step; with delta = 0 the guess is the mode of the posterior. As in the
authors' code the likelihood comes in gradually: its factor grows geometrically from min(c sigma^2, 1) to 1 over half of
the steps while the prior's weight stays, so that small noise doesn't make a landscape of walls at first.

Likelihood and prior may each be replaced by a wrong one, which shows what knowing the right one is worth (Figure 4).
Prior "tv-range" is that of appendix A.4; noise on the gradient is appendix A.7's (Langevin).
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
    RangeDistance,
    TotalVariation,
    has_pixels,
)
from riskaudit.attacks.optimise.sampling import Sampling
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start
from riskaudit.errors import SettingsError

PriorKind: TypeAlias = Literal["tv", "range", "tv-range", "gaussian", "laplace"]
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
        last_rate: share of it that is left at the last step; it falls exponentially.
        prior: "tv", neighbouring pixels differ by Laplace(0.1), for inputs that aren't images "gaussian"; "gaussian",
            the observation's own; "laplace", independent coordinates with its mean and standard deviation; "range",
            uniform in the range of the inputs; "tv-range", -log p = (phi TV + (1 - phi) ||z - clip(z)||_2) / 0.1, which
            takes the place of a box.
        beta: weight of log p(z); 1 is the posterior itself.
        tv_share: phi of "tv-range".
        first_likelihood: c; the likelihood begins as 1/2 c times the squared distance where noise is normal and small.
        num_points: k.
        delta: radius of the ball as a root mean square per coordinate, data units.
        langevin: standard deviation of normal noise on every entry of the gradient of log p, drawn at every step.
        likelihood: "release", the release's own; "gaussian" or "laplace", noise of its standard deviation by this law.
        reference_std: of the noise that stands in for a release without any.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "bayes"
    title: ClassVar[str] = "Bayes-optimal adversary"
    source: ClassVar[str] = "Balunovic et al., ICLR 2022"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "The release's own likelihood with a prior, by Adam."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = ({}, {"beta": 0.1}, {"prior": "gaussian"}, {"rate": 0.3})

    steps: int = 2000
    restarts: int = 1
    rate: float = 1.0
    last_rate: float = 1e-3
    prior: PriorKind = "tv"
    beta: float = 1.0
    tv_share: float = 0.25
    first_likelihood: float = 1e3
    num_points: int = 1
    delta: float = 0.0
    langevin: float = 0.0
    likelihood: LikelihoodKind = "release"
    reference_std: float = 1e-3
    start: Start = "gaussian"

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise SettingsError(f"expected num_points of at least 1, found {self.num_points}")
        if not (self.beta > 0 and self.first_likelihood > 0):
            raise SettingsError(
                f"expected beta and first_likelihood above 0, found {self.beta:g} and {self.first_likelihood:g}"
            )
        if not (self.delta >= 0 and self.langevin >= 0):
            raise SettingsError(
                f"expected delta and langevin of at least 0, found {self.delta:g} and {self.langevin:g}"
            )
        if not (0 < self.last_rate <= 1 and 0 <= self.tv_share <= 1):
            raise SettingsError(
                f"expected last_rate and tv_share as shares of 1, found {self.last_rate:g} and {self.tv_share:g}"
            )

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        kind = self._kind(observation)
        # These priors know of no box, and the posterior would be another one with it.
        box = observation.input_range if kind in ("tv", "range") else None
        law = None if self.likelihood == "release" else self.likelihood
        matching = NegativeLogLikelihood(self.reference_std, law)
        first = min(self.first_likelihood * matching.noise(observation.release).std ** 2, 1.0)
        sampling = None
        if self.delta > 0 or self.langevin > 0:
            rows, draws = len(observation) * self.restarts, {"radius": self.delta, "noise": self.langevin}
            sampling = Sampling.of(rows, generator, num_points=self.num_points, **draws)
        minimiser = Descent(
            self.steps,
            self.rate,
            schedule="exponential",
            box=box,
            # The normalisation of the likelihood makes the objective large: a share of it is a coarse measure.
            tolerance=1e-6,
            settled=ANNEALED,
            last=self.last_rate,
            latest=self.delta > 0,
        )
        return reconstruct(
            observation,
            generator,
            lambda labelled: Objective.of(
                labelled, self.restarts, matching, self._terms(kind), first_matching_weight=first, sampling=sampling
            ),
            minimiser,
            self.start,
            self.restarts,
        )

    def _kind(self, observation: Observation) -> PriorKind:
        if "range" in self.prior and observation.input_range is None:
            raise AttackNotApplicable(f"the prior {self.prior!r} needs a known range of the inputs")
        return "gaussian" if self.prior == "tv" and not has_pixels(observation.input_shape) else self.prior

    def _terms(self, kind: PriorKind) -> tuple[Term, ...]:
        beta, variation = self.beta, TotalVariation("sum")
        if kind == "gaussian":
            return (Term(GaussianPenalty(), beta),)
        if kind == "laplace":
            return (Term(LaplacePenalty(), beta),)
        if kind == "tv":
            return (Term(variation, beta / DIFFERENCE_SCALE),)
        if kind == "range":
            return (Term(PixelRange(), beta / (2 * RANGE_STD**2)),)
        weight = beta / DIFFERENCE_SCALE
        return (Term(variation, weight * self.tv_share), Term(RangeDistance(), weight * (1 - self.tv_share)))
