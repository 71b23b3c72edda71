"""``tableak``: tables, by mixtures of categories' codes, and an ensemble of starts that vote.

Vero, Balunovic, Dimitrov and Vechev, "TabLeak: Tabular Data Leakage in Federated Learning", ICML 2023: categories are
relaxed by a softmax (section 4.1); the samples of every start of an upload are put in the order of the best one's, by
the least squared distances within a class; numbers are the median over the starts, categories what their mean
distribution favours (section 4.2); entropy says how sure the attacker is (section 4.3).

Departures: the distance is the likelihood under the release's noise (cosine, as in the paper, on demand), with what is
expected of the numbers where there is noise; the better half of the starts votes, by the attack's objective. Beside the
vote stand the best start alone and what Gauss-Newton makes of all inputs as numbers, since first-order steps get stuck
where little noise makes the problem ill-conditioned: categories are decided, numbers fitted once more, and the least
objective wins; then every code of every category is tried in turn. The entropy
is of the likelihoods of a category's codes at the result, with cosine of the starts' mean distributions as in the
paper. Inputs without an encoding are numbers all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.gauss_newton import GaussNewton
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.matching import CosineDistance, NegativeLogLikelihood
from riskaudit.attacks.optimise.categories import MixtureObjective, Mixtures, NumbersPenalty
from riskaudit.attacks.optimise.consensus import classes_of, same_order
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.minimisers import Minimum
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.attacks.optimise.search import without_guess
from riskaudit.attacks.optimise.starts import Start, draw_starts
from riskaudit.results import Status

# Objectives beyond this are no likelihoods.
LARGEST = 1e300
# Share of the steps in which numbers are fitted once more, of decided categories.
FITTED = 1 / 4


@register
@final
@dataclass(frozen=True)
class TabLeak(Attack):
    """Minimise the distance of releases over numbers and mixtures of codes, from several starts that vote.

    Attributes:
        steps: of Adam at most.
        restarts: starts of one upload.
        rate: step size, of numbers in the prior's standard deviations and of logits.
        distance: of releases.
        start: kind of the first numbers; logits are random, or equal where it is "mean".
    """

    name: ClassVar[str] = "tableak"
    title: ClassVar[str] = "TabLeak"
    source: ClassVar[str] = "Vero et al., ICML 2023"
    summary: ClassVar[str] = "Tables: softmax over categories, and an ensemble of starts that vote."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = ({}, {"distance": "cosine"}, {"rate": 0.03}, {"restarts": 16})

    steps: int = 1000
    restarts: int = 8
    rate: float = 0.06
    distance: Literal["likelihood", "cosine"] = "likelihood"
    start: Start = "gaussian"

    @property
    @override
    def first(self) -> Attack:
        """The starts of one upload vote, so that none is there without the others."""
        return self

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        began = time.perf_counter()
        labelled = with_labels(observation)
        mixtures = Mixtures(labelled.dimension, labelled.encoding)
        prior = labelled.bound_prior()
        inputs = draw_starts(self.start, labelled, prior, self.restarts, generator)
        unit = prior.variance.sqrt().repeat_interleave(self.restarts)
        with torch.no_grad():
            objective = self._objective(labelled, self.restarts)
            found = self._descend(self.steps, objective, self._points(mixtures, inputs, generator), unit, mixtures)
            ensembles = [
                _Ensemble.of(labelled, mixtures, found, index, self.restarts) for index in range(len(labelled))
            ]
            candidates = [torch.stack([ensemble.candidates for ensemble in ensembles])]
            candidates.append(self._second_order(labelled, mixtures, generator)[:, None])
            final = self._decided(labelled, mixtures, torch.cat(candidates, 1), prior.variance.sqrt())
            confidence = torch.cat([ensemble.confidence for ensemble in ensembles])
            if self.distance == "likelihood" and mixtures.codes:
                confidence = self._confidence(labelled, mixtures, final.points)
        guess, failed = final.points, ~torch.isfinite(final.value)
        status: list[Status] = [
            "failed" if bad else ensemble.status for bad, ensemble in zip(failed.tolist(), ensembles, strict=True)
        ]
        return Reconstruction(
            inputs=labelled.images(torch.where(failed[:, None], without_guess(labelled, prior), guess)),
            objective=final.value,
            status=tuple(status),
            steps=torch.stack([ensemble.steps for ensemble in ensembles]),
            restarts=self.restarts,
            seconds=time.perf_counter() - began,
            targets=labelled.known_targets,
            confidence=confidence,
        )

    def _objective(self, labelled: Observation, restarts: int) -> Objective:
        matching = NegativeLogLikelihood() if self.distance == "likelihood" else CosineDistance()
        has_prior = self.distance == "likelihood" and labelled.release.noise is not None
        terms = (Term(NumbersPenalty(), 1.0),) if has_prior else ()
        return Objective.of(labelled, restarts, matching, terms)

    def _points(self, mixtures: Mixtures, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """First points [R, n u] of inputs [R, n d] whose categories are left open."""
        samples = inputs.reshape(len(inputs), -1, mixtures.dimension)
        points = mixtures.points(samples)
        drawn = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        count = len(mixtures.numbers)
        points[..., count:] = 0.0 if self.start == "mean" and self.restarts == 1 else drawn[..., count:]
        return points.flatten(1)

    def _descend(self, steps: int, objective: Objective, points: Tensor, unit: Tensor, mixtures: Mixtures) -> Minimum:
        return Descent(steps, self.rate, schedule="cosine").minimise(
            MixtureObjective(objective, mixtures), points, unit
        )

    def _second_order(self, labelled: Observation, mixtures: Mixtures, generator: torch.Generator) -> Tensor:
        """What Gauss-Newton makes of the uploads with numbers in all inputs, categories decided, [B, n d]."""
        descent = GaussNewton(min(self.steps, GaussNewton.steps), restarts=1, stages=0, smooth_steps=0)
        found = descent.run(labelled, generator)
        samples = found.inputs.reshape(len(labelled), -1, mixtures.dimension)
        return mixtures.inputs(mixtures.points(samples)).flatten(1)

    def _decided(self, labelled: Observation, mixtures: Mixtures, candidates: Tensor, unit: Tensor) -> Minimum:
        """Of candidates [B, k, n d] whose categories are decided the one with the least objective once fitted.

        Then category by category every code is tried, and numbers are fitted to what lowers the objective.
        """
        count = candidates.shape[1]
        objective = self._objective(labelled, count)
        fitted = self._numbers_fitted(objective, mixtures, candidates.flatten(0, 1), unit.repeat_interleave(count))
        best = count * torch.arange(len(candidates), device=unit.device) + fitted.value.reshape(-1, count).argmin(1)
        points, value = fitted.points[best], fitted.value[best]
        swept = self._swept(labelled, mixtures, points)
        again = self._numbers_fitted(self._objective(labelled, 1), mixtures, swept, unit)
        lower = again.value < value
        status = [fitted.status[row] for row in best.tolist()]
        return Minimum(
            torch.where(lower[:, None], again.points, points),
            torch.where(lower, again.value, value),
            tuple(new if is_lower else old for new, old, is_lower in zip(again.status, status, lower, strict=True)),
            fitted.steps[best],
        )

    def _numbers_fitted(self, objective: Objective, mixtures: Mixtures, inputs: Tensor, unit: Tensor) -> Minimum:
        """The inputs [R, n d] after a descent of the numbers alone."""
        samples = inputs.reshape(len(inputs), -1, mixtures.dimension)
        steps = round(FITTED * self.steps)
        found = self._descend(steps, objective, mixtures.points(samples).flatten(1), unit, mixtures)
        fitted = mixtures.inputs(found.points.reshape(len(inputs), -1, mixtures.size)).flatten(1)
        return Minimum(fitted, found.value, found.status, found.steps)

    def _swept(self, labelled: Observation, mixtures: Mixtures, inputs: Tensor) -> Tensor:
        """Inputs [B, n d] after each category of each sample took the code with the least objective, one by one."""
        inputs = inputs.clone()
        for position in range(labelled.upload_size):
            for span, codes in mixtures.codes:
                places = mixtures.places(position, span)
                value = self._by_code(labelled, inputs, places, codes)
                inputs[:, places] = codes.to(inputs)[value.argmin(1)]
        return inputs

    def _by_code(self, labelled: Observation, inputs: Tensor, places: slice, codes: Tensor) -> Tensor:
        """The objective with every code at some places of inputs [B, n d], [B, K]; infinite where it is no number."""
        tried = inputs.repeat_interleave(len(codes), 0)
        tried[:, places] = codes.to(tried).repeat(len(inputs), 1)
        value, _ = self._objective(labelled, len(codes)).evaluate(tried)
        return value.nan_to_num(torch.inf).reshape(len(inputs), -1)

    def _confidence(self, labelled: Observation, mixtures: Mixtures, inputs: Tensor) -> Tensor:
        """How sure each sample's categories are by the likelihood of their codes, all else as in inputs [B, n d]."""
        samples = []
        for position in range(labelled.upload_size):
            likely = []
            for span, codes in mixtures.codes:
                value = self._by_code(labelled, inputs, mixtures.places(position, span), codes)
                likely.append((-value.clamp_max(LARGEST)).softmax(1))
            samples.append(certainty(likely))
        return torch.stack(samples, 1).flatten()


@final
@dataclass(frozen=True, eq=False)
class _Ensemble:
    """What the starts of one upload say together.

    Attributes:
        candidates: inputs of the vote and of the best start, categories decided, [2, n d].
        confidence: of each sample, [n].
        steps: of the best start.
        status: of the best start.
    """

    candidates: Tensor
    confidence: Tensor
    steps: Tensor
    status: Status

    @classmethod
    def of(cls, labelled: Observation, mixtures: Mixtures, found: Minimum, upload: int, restarts: int) -> _Ensemble:
        rows = slice(upload * restarts, (upload + 1) * restarts)
        value = found.value[rows].nan_to_num(torch.inf)
        order = value.argsort()
        voters = order[: max(1, (restarts + 1) // 2)]
        points = found.points[rows][voters].reshape(len(voters), -1, mixtures.size).nan_to_num()
        soft, classes = mixtures.inputs(points), classes_of(labelled)[upload]
        # In the order of the best start's samples.
        orders = torch.stack([same_order(each, soft[0], classes) for each in soft])
        points = points[torch.arange(len(points), device=points.device)[:, None], orders]
        numbers = points[..., : len(mixtures.numbers)]
        likely = [each.mean(0) for each in mixtures.distributions(points)]
        best = mixtures.decided(numbers[0], mixtures.distributions(points[0]))
        vote = mixtures.decided(numbers.median(0).values, likely)
        row = int(order[0]) + upload * restarts
        candidates = torch.stack([vote.flatten(), best.flatten()])
        confidence = certainty(likely) if likely else points.new_ones(points.shape[1], dtype=torch.float64)
        return cls(candidates, confidence, found.steps[row], found.status[row])


def certainty(likely: list[Tensor]) -> Tensor:
    """1 minus the entropy of categories' distributions [n, K] over its largest value, the categories' mean, [n]."""
    entropies = [torch.special.entr(each.double()).sum(-1) / math.log(each.shape[-1]) for each in likely]
    return (1.0 - torch.stack(entropies).mean(0)).clamp(0.0, 1.0)
