"""``layer-left-out``: Inverting Gradients on all but one linear layer's weight, which breaks Soteria.

Balunovic et al., ICLR 2022, equation 6: the gradient of the defended layer's weight is taken out of the matching (its
bias stays), everything else is sent as it is. An attacker who isn't told the layer tries each, and keeps what their own
objective likes best. Settings of their appendix A.1: cosine distance, total variation 4e-4, 4000 steps.

Any attack can be run on such an observation: `observe_rest` makes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import nn
from typing_extensions import override

from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.inverting_gradients import InvertingGradients
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.linear_layers import own_parameter
from riskaudit.attacks.optimise.starts import Start
from riskaudit.errors import ReleaseError
from riskaudit.release import Release
from riskaudit.release.adapted import left_out
from riskaudit.release.steps.share import Share


@register
@final
@dataclass(frozen=True)
class LayerLeftOut(Attack):
    """Invert gradients without one linear layer's weight.

    Attributes:
        steps: of Adam at most, for every layer that is tried.
        restarts: random starts per sample and layer.
        rate: see `InvertingGradients`.
        total_variation: see `InvertingGradients`.
        layer: whose weight is left out, by its name in the model; None where the attacker isn't told it.
        start: kind of the first guesses.
    """

    name: ClassVar[str] = "layer-left-out"
    title: ClassVar[str] = "Inverting Gradients without a layer"
    source: ClassVar[str] = "Balunovic et al., ICLR 2022, equation 6"
    summary: ClassVar[str] = "Cosine distance without one linear layer's weight, each of them tried."
    matching: ClassVar[Literal["l2", "cosine"] | None] = "cosine"
    grid: ClassVar[tuple[Mapping[str, object], ...]] = ({}, {"total_variation": 1e-6}, {"total_variation": 1e-2})

    steps: int = 4000
    restarts: int = 1
    rate: float = 0.1
    total_variation: float = 4e-4
    layer: str | None = None
    start: Start = "gaussian"

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        attack = InvertingGradients(self.steps, self.restarts, self.rate, self.total_variation, start=self.start)
        weights = linear_weights(observation.release)
        if self.layer is not None:
            if self.layer not in weights:
                known = ", ".join(weights) or "none"
                raise AttackNotApplicable(f"{self.layer!r} is no linear layer whose weight is sent ({known} are)")
            weights = {self.layer: weights[self.layer]}
        if not weights:
            raise AttackNotApplicable("no linear layer's weight is sent")
        return best_without(attack, observation, [[weight] for weight in weights.values()], generator)


def linear_weights(release: Release) -> dict[str, str]:
    """Names of the weights that are sent of linear layers, by the layers' names in the model."""
    layers = {name: layer for name, layer in release.model.named_modules() if isinstance(layer, nn.Linear)}
    weights = {name: own_parameter(release.model, layer, "weight") for name, layer in layers.items()}
    return {name: weight for name, weight in weights.items() if weight is not None and weight in release.sent.shapes}


def observe_rest(observation: Observation, parameters: Sequence[str]) -> Observation:
    """What is known of the same uploads without the entries of some parameters.

    Args:
        observation: of any release.
        parameters: by name; of each something is sent.

    Raises:
        AttackNotApplicable: nothing else is sent.
    """
    release = observation.release
    try:
        rest = left_out(release, parameters)
        keep = Share("+".join(f"!{name}" for name in parameters)).bind(release.sent)
    except ReleaseError as error:
        raise AttackNotApplicable(f"without {', '.join(parameters)} nothing is sent") from error
    released = torch.stack([keep(row) for row in observation.released])
    return replace(observation, released=released, jacobian=observation.jacobian.of(rest))


def best_without(
    attack: Attack, observation: Observation, candidates: Sequence[Sequence[str]], generator: torch.Generator
) -> Reconstruction:
    """Run an attack without the entries of some parameters, for several choices of these.

    Args:
        attack: to run on each.
        observation: what the attacker knows.
        candidates: names of the parameters to be left out together, one choice after the other.
        generator: of the attack.

    Returns:
        For every upload what comes of the choice with the least objective.

    Raises:
        AttackNotApplicable: whatever is left out, the attack can't be run.
    """
    began, found, refusal = time.perf_counter(), list[Reconstruction](), AttackNotApplicable("nothing to leave out")
    observation = with_labels(observation)
    for parameters in candidates:
        try:
            found.append(attack.run(observe_rest(observation, parameters), generator))
        except AttackNotApplicable as reason:
            refusal = reason
    if not found:
        raise refusal
    objectives = torch.stack([each.objective for each in found])
    best = objectives.argmin(0).tolist()
    size = observation.upload_size
    places = [slice(upload * size, (upload + 1) * size) for upload in range(len(observation))]
    chosen = list(zip((found[place] for place in best), places, strict=True))
    return Reconstruction(
        inputs=torch.cat([each.inputs[place] for each, place in chosen]),
        objective=objectives.amin(0),
        status=tuple(found[place].status[upload] for upload, place in enumerate(best)),
        steps=torch.stack([found[place].steps[upload] for upload, place in enumerate(best)]),
        restarts=sum(each.restarts for each in found),
        seconds=time.perf_counter() - began,
        targets=torch.cat([each.targets[place] for each, place in chosen]),
    )
