"""``analytic``: the input in closed form, where a fully connected layer with a bias sees all of it.

For y = W a + b the gradient of W is s a^T and that of b is s, so a is the quotient of any row: Phong et al., 2018;
Geiping et al., NeurIPS 2020, Proposition 3.1. All rows together by least squares weighted by s; entries that
were removed don't count. What stands before the layer may scale and shift every coordinate (a normalisation), which
probes of the model find out; anything else makes the attack not applicable.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.linear_layers import coordinatewise_map, linear_calls
from riskaudit.attacks.optimise.search import without_guess
from riskaudit.release import Release
from riskaudit.release.steps import applied, bind_steps
from riskaudit.results import Status


@dataclass(frozen=True, eq=False)
class WholeInputLayer:
    """A fully connected layer whose input is scale x + shift, coordinate by coordinate.

    Attributes:
        weight: where the gradient of W lies in a released vector.
        bias: likewise of b.
        scale: [d].
        shift: [d].
    """

    weight: slice
    bias: slice
    scale: Tensor
    shift: Tensor


@register
@final
@dataclass(frozen=True)
class Analytic(Attack):
    """Read the input off one layer's gradient. ``steps`` and ``restarts`` have no effect."""

    name: ClassVar[str] = "analytic"
    title: ClassVar[str] = "Closed form"
    source: ClassVar[str] = "Geiping et al., NeurIPS 2020, Proposition 3.1"
    summary: ClassVar[str] = "The input in closed form, where a fully connected layer with a bias sees all of it."

    steps: int = 1
    restarts: int = 1

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        began = time.perf_counter()
        if observation.release.coupling == "joint":
            raise AttackNotApplicable("the input can be divided out of one sample's gradient only, not out of a mean")
        layer = whole_input_layer(observation.release, observation.input_shape)
        rows = observation.released[:, layer.weight].double().reshape(len(observation), -1, observation.dimension)
        signals = observation.released[:, layer.bias].double()
        counted = (rows != 0) & (signals != 0)[..., None]
        weights = counted * signals[..., None].square()
        total = weights.sum(1)
        inside = (counted * signals[..., None] * rows).sum(1) / torch.where(total > 0, total, 1.0)
        objective = (counted * (rows - signals[..., None] * inside[:, None]).square()).sum((1, 2))
        labelled = _labelled(observation)
        fallback = without_guess(labelled, labelled.bound_prior())
        recovered = (inside - layer.shift) / layer.scale
        # Of some coordinates a mask may have left nothing; zeros that no mask made are small values.
        unmasked = ~_masked(observation.release)[layer.weight].reshape(-1, observation.dimension)
        inputs = torch.where((unmasked & (signals != 0)[..., None]).any(1), recovered, fallback.double())
        good = (signals != 0).any(1) & torch.isfinite(inputs).all(1) & torch.isfinite(objective)
        inputs = torch.where(good[:, None], inputs.to(fallback), fallback)
        status: tuple[Status, ...] = tuple("converged" if fine else "failed" for fine in good.tolist())
        return Reconstruction(
            inputs=inputs.reshape(len(observation), *observation.input_shape),
            objective=torch.where(good, objective, torch.inf),
            status=status,
            steps=torch.ones(len(observation), dtype=torch.long, device=inputs.device),
            restarts=1,
            seconds=time.perf_counter() - began,
            targets=labelled.known_targets,
        )


def whole_input_layer(release: Release, input_shape: tuple[int, ...]) -> WholeInputLayer:
    """The first fully connected layer with a bias that sees the whole input.

    Raises:
        AttackNotApplicable: there is none.
    """
    dimension = torch.Size(input_shape).numel()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, dimension, generator=generator, dtype=torch.float64)
    points = torch.cat([torch.zeros(1, dimension), torch.ones(1, dimension), drawn]).to(release.device, release.dtype)
    calls, _ = linear_calls(release, points.reshape(-1, *input_shape))
    reason = "no fully connected layer with a bias sees the whole input"
    for call in calls:
        if call.weight is None or call.bias is None or call.inputs.shape != points.shape:
            continue
        pair = coordinatewise_map(points, call.inputs)
        if pair is not None:
            return WholeInputLayer(call.weight, call.bias, *pair)
        reason = f"what enters the fully connected layer {call.name} is more than the scaled and shifted input"
    raise AttackNotApplicable(reason)


def _masked(release: Release) -> Tensor:
    """Entries that steps of the release remove for everybody, [P], bool."""
    bound, _ = bind_steps(release.spec.all_steps, release.context)
    ones = torch.ones(release.context.num_entries, dtype=release.dtype, device=release.device)
    return applied([step for step in bound if step.step.keeps_noise], ones) == 0


def _labelled(observation: Observation) -> Observation:
    """With labels where they can be had; the attack itself doesn't use them."""
    try:
        return with_labels(observation)
    except AttackNotApplicable:
        unknown = torch.full((len(observation),), -1, dtype=torch.int64, device=observation.released.device)
        return observation.with_targets(unknown)
