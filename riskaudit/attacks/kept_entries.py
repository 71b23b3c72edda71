"""``kept-entries``: Gauss-Newton by the masked likelihood, on the entries that the server sees were kept.

Pruning and Soteria choose entries by the very input that is looked for, so that a guess's release has other zeros than
the observed one and its distance jumps from guess to guess. But without noise which entries were kept is there to see:

    ||m (g(x) - obs)||^2,  m = 1 where obs isn't 0

is smooth, cheap (no choice is made for any guess), and right at the truth (Balunovic et al., ICLR 2022, section 4: a
mask that is known belongs into the likelihood). That other entries were small, which the choice tells as well, is not
made use of: where few entries are left, attacks that choose at every guess may do better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from typing_extensions import override

from riskaudit.attacks.base import (
    EARLIEST_END,
    Attack,
    AttackNotApplicable,
    Effort,
    Observation,
    Reconstruction,
    register,
)
from riskaudit.attacks.gauss_newton import GaussNewton
from riskaudit.attacks.labels import with_labels
from riskaudit.jacobian.kept import KeptJacobians
from riskaudit.release.grammar import Part, ReleaseSpec
from riskaudit.release.steps import Step
from riskaudit.release.steps.prune import Prune
from riskaudit.release.steps.soteria import Soteria


@register
@final
@dataclass(frozen=True)
class KeptEntries(Attack):
    """Gauss-Newton on the entries that were kept; `GaussNewton` itself where no step chooses entries by the input.

    Attributes:
        steps: see `GaussNewton`.
        restarts: see `GaussNewton`.
        rounds: see `GaussNewton`.
        stages: see `GaussNewton`.
        smooth_steps: see `GaussNewton`.
    """

    name: ClassVar[str] = "kept-entries"
    title: ClassVar[str] = "Masked likelihood (Gauss-Newton)"
    source: ClassVar[str] = "Balunovic et al., ICLR 2022, section 4"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "l2"
    summary: ClassVar[str] = "Gauss-Newton on the entries that pruning or Soteria left, as the server sees which."

    steps: int = GaussNewton.steps
    restarts: int = GaussNewton.restarts
    rounds: int = GaussNewton.rounds
    stages: int = GaussNewton.stages
    smooth_steps: int = GaussNewton.smooth_steps

    @property
    @override
    def effort(self) -> Effort:
        """In steps, each of as many products as it takes."""
        probe = replace(self, steps=1, restarts=1, stages=0, smooth_steps=0)
        most = self._inner.effort.most / probe._inner.effort.most
        return Effort(probe, 1, EARLIEST_END * self.steps, self.steps, most)

    @property
    def _inner(self) -> GaussNewton:
        return GaussNewton(self.steps, self.restarts, self.rounds, stages=self.stages, smooth_steps=self.smooth_steps)

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        return self._inner.run(observe_kept(with_labels(observation)), generator)


def observe_kept(observation: Observation) -> Observation:
    """What is known of the entries that were kept; the observation itself where no step chooses them by the input.

    Raises:
        AttackNotApplicable: which entries were kept isn't to be seen.
    """
    spec = observation.release.spec
    bare = _without_choices(spec)
    if bare == spec:
        return observation
    if spec.noise is not None:
        raise AttackNotApplicable("the noise hides which entries were kept")
    numbers = observation.numbers or tuple(range(len(observation)))
    masks = (observation.released != 0).to(observation.released)
    inner = observation.jacobian.of(observation.release.with_spec(bare))
    factory = KeptJacobians(inner, dict(zip(numbers, masks, strict=True)))
    return replace(observation, jacobian=factory, numbers=numbers)


def _without_choices(spec: ReleaseSpec) -> ReleaseSpec:
    """The description without steps that choose entries by the input.

    Raises:
        AttackNotApplicable: others come after them, which change more than single entries.
    """
    kept, chosen = list[Part](), False
    for part in spec.steps:
        if isinstance(part, Prune | Soteria):
            chosen = True
            continue
        if chosen and not (isinstance(part, Step) and (part.keeps_noise or part.redrawn)):
            raise AttackNotApplicable(f"'{part}' hides which entries the step before it kept")
        kept.append(part)
    return replace(spec, steps=tuple(kept))
