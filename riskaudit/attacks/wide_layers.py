"""Wide fully connected layers of random weights: what their units' gradients have moments of.

A pair of fully connected layers that follow each other, with one function s of every unit between them: what enters
the second is s(W z + b), so that the gradient of its weight is sum_i r_i s(W z_i + b)^T over an upload's samples. Pairs
are looked for by running the model with other values in the place of the first layer's outputs, so that it doesn't
matter how it is written. Moments over the units tell something where rows of W look like independent draws of mean 0
with uncorrelated entries, as before training, and b doesn't depend on them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from riskaudit.attacks.base import AttackNotApplicable, Observation
from riskaudit.attacks.labels import OutputLayer
from riskaudit.attacks.linear_layers import ROUNDING, LinearCall, coordinatewise_map, linear_calls
from riskaudit.release import Release

# Standard deviations by which a statistic of random weights may differ from what it is expected to be.
PLAUSIBLE = 8.0
# E w^4 / (E w^2)^2 of entries whose moments are near those of normal ones; 3 of these, 1.8 of uniform ones.
KURTOSIS = (1.5, 4.0)
# Inputs that stand for an upload's samples, drawn from the prior.
NUM_DUMMIES = 32
# Points of a function at which units are compared.
POINTS = 32


@final
class UnitFunction:
    """s, the function between two layers, of any numbers.

    Args:
        release: the model.
        layer: the first layer's name.
        following: the second's.
        width: m, units of the first.
        input_shape: *S.
    """

    def __init__(self, release: Release, layer: str, following: str, width: int, input_shape: tuple[int, ...]) -> None:
        self.release, self.width, self.input_shape = release, width, input_shape
        self.layer, self.following = (release.model.get_submodule(name) for name in (layer, following))

    def __call__(self, points: Tensor) -> Tensor:
        """s of every number of a vector, in its dtype."""
        rows = -(-len(points) // self.width)
        padded = torch.cat([points, points.new_zeros(rows * self.width - len(points))])
        entering = self.entering(padded.reshape(rows, self.width))
        if entering is None:
            raise AttackNotApplicable("what follows the layer isn't one function of every unit")
        return entering.reshape(-1)[: len(points)].to(points)

    def is_of_units(self) -> bool:
        """Whether it is the same function of every unit by itself."""
        points = torch.linspace(-4, 4, POINTS, dtype=torch.float64, device=self.release.device)
        rows = torch.arange(POINTS, device=points.device)[:, None]
        shifted = (rows + torch.arange(self.width, device=points.device)) % POINTS
        alike, mixed = self.entering(points[:, None].expand(-1, self.width)), self.entering(points[shifted])
        if alike is None or mixed is None:
            return False
        off = torch.maximum((alike - alike[:, :1]).abs().max(), (mixed - alike[:, 0][shifted]).abs().max())
        return bool(off <= ROUNDING * torch.finfo(self.release.dtype).eps * (1 + alike.abs().max()))

    def entering(self, values: Tensor) -> Tensor | None:
        """What enters the second layer where the first gives values [N, m], [N, m]; None where it is anything else."""
        given, seen = values.to(self.release.dtype), list[Tensor]()
        handles = [
            self.layer.register_forward_hook(lambda *_: given),
            self.following.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])),
        ]
        try:
            with torch.no_grad():
                inputs = torch.zeros(len(values), *self.input_shape, dtype=given.dtype, device=given.device)
                self.release.run(self.release.parameters, inputs)
        except (RuntimeError, IndexError):  # other shapes than the model's own
            return None
        finally:
            for handle in handles:
                handle.remove()
        return seen[0].double() if len(seen) == 1 and seen[0].shape == values.shape else None


@dataclass(frozen=True, eq=False)
class WideLayer:
    """Two fully connected layers with one function of every unit between them.

    Attributes:
        name: of the first.
        following: of the second.
        weights: of the first, divided by their standard deviation, [m, D], float64.
        spread: that standard deviation.
        biases: of the first, [m], float64.
        kurtosis: E w^4 of the weights.
        function: between them.
        length: of what enters the first, times ``spread``, of likely inputs.
        own: where the gradient of the first's weight lies in a released vector; None where it isn't sent.
        outer: likewise of the second's weight, [C, m].
        outer_bias: likewise of the second's bias, [C].
        inputs: scale and shift [d] of a first layer that sees the whole input, coordinate by coordinate; None where it
            sees features.
        gives_logits: whether the second's outputs are the logits of a cross-entropy.
    """

    name: str
    following: str
    weights: Tensor
    spread: float
    biases: Tensor
    kurtosis: float
    function: UnitFunction
    length: float
    own: slice | None
    outer: slice
    outer_bias: slice | None
    inputs: tuple[Tensor, Tensor] | None
    gives_logits: bool


def wide_layers(observation: Observation) -> list[WideLayer]:
    """All such pairs of a model, in the order of their calls; the targets must be known.

    Raises:
        AttackNotApplicable: there is none; the message says why the widest candidate isn't one.
    """
    release, points = observation.release, _points(observation)
    calls, _ = linear_calls(release, observation.images(points))
    try:
        output = OutputLayer(release, observation.input_shape).name
    except AttackNotApplicable:
        output = None
    found, reasons = list[WideLayer](), dict[int, str]()
    for first, second in itertools.pairwise(calls):
        try:
            found.append(_wide_layer(observation, points, first, second, output))
        except AttackNotApplicable as reason:
            reasons[first.outputs.shape[-1]] = str(reason)
    if not found:
        raise AttackNotApplicable(reasons[max(reasons)] if reasons else "no fully connected layer follows another")
    return found


def _points(observation: Observation) -> Tensor:
    """Zeros, ones and likely inputs, [N, d]."""
    like = observation.released.new_empty(NUM_DUMMIES, observation.dimension)
    prior = observation.prior.bind(torch.full((NUM_DUMMIES,), -1, device=like.device), like)
    draws = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
    drawn = prior.mean + prior.root(draws)
    if observation.input_range is not None:
        drawn = drawn.clamp(*observation.input_range)
    return torch.cat([torch.zeros_like(drawn[:1]), torch.ones_like(drawn[:1]), drawn])


def _wide_layer(
    observation: Observation, points: Tensor, first: LinearCall, second: LinearCall, output: str | None
) -> WideLayer:
    """The pair of two calls.

    Raises:
        AttackNotApplicable: it is none.
    """
    release, pair = observation.release, f"{first.name} and {second.name}"
    if first.outputs.ndim != 2 or second.inputs.shape != first.outputs.shape:
        raise AttackNotApplicable(f"the fully connected layers {pair} don't follow each other unit by unit")
    if second.weight is None:
        raise AttackNotApplicable(f"the gradient of the weight of {second.name} is not released as it is")
    width = first.outputs.shape[1]
    function = UnitFunction(release, first.name, second.name, width, observation.input_shape)
    if not function.is_of_units():
        raise AttackNotApplicable(f"between the layers {pair} there is more than one function of every unit")
    layer = release.model.get_submodule(first.name)
    assert isinstance(layer, nn.Linear)
    weights = layer.weight.detach().double()
    biases = weights.new_zeros(width) if layer.bias is None else layer.bias.detach().double()
    spread = float(weights.square().mean().sqrt())
    _refuse_other_than_random(first.name, weights / max(spread, 1e-300), biases)
    entering = first.inputs[2:].double()
    return WideLayer(
        name=first.name,
        following=second.name,
        weights=weights / spread,
        spread=spread,
        biases=biases,
        kurtosis=float((weights / spread).pow(4).mean()),
        function=function,
        length=spread * float(entering.norm(dim=1).median()),
        own=first.weight,
        outer=second.weight,
        outer_bias=second.bias,
        inputs=coordinatewise_map(points, first.inputs),
        gives_logits=second.name == output,
    )


def _refuse_other_than_random(name: str, weights: Tensor, biases: Tensor) -> None:
    """Refuse weights [m, D] of mean square 1 whose rows don't look like independent draws, or biases that know them.

    Raises:
        AttackNotApplicable: which of these it is.
    """
    units, dimension = weights.shape
    reason = f"the weights of the layer {name} aren't random ones, as before training"
    # Sums of squares of about independent numbers: so many, their variance twice that.
    shift = units * float(weights.mean(0).square().sum())
    if _is_far(shift, dimension):
        raise AttackNotApplicable(f"{reason}: their mean isn't 0")
    kurtosis = float(weights.pow(4).mean())
    if not KURTOSIS[0] <= kurtosis <= KURTOSIS[1]:
        raise AttackNotApplicable(f"{reason}: the mean of their fourth powers is {kurtosis:.2g}, that of normal ones 3")
    gram = weights.T @ weights / units
    pairs = dimension * (dimension - 1) / 2
    crossed = units * float((gram.square().sum() - gram.diagonal().square().sum()) / 2)
    variances = units * float((gram.diagonal() - 1).square().sum()) / max(kurtosis - 1, 1e-3)
    if _is_far(crossed, pairs) or _is_far(variances, dimension):
        raise AttackNotApplicable(f"{reason}: entries of a row are correlated, or of different sizes")
    if float(biases.std(correction=0)) > 0:
        standard = (biases - biases.mean()) / biases.std(correction=0)
        with_weights = units * float((standard @ weights / units).square().sum())
        with_sizes = units**0.5 * float((standard @ _standard(weights.square().sum(1))) / units)
        if _is_far(with_weights, dimension) or abs(with_sizes) > PLAUSIBLE:
            raise AttackNotApplicable(f"the biases of the layer {name} depend on its weights")


def _is_far(squares: float, count: float) -> bool:
    """Whether a sum of squares of so many standard normal numbers is larger than chance makes it."""
    return squares > count + PLAUSIBLE * math.sqrt(2 * count)


def _standard(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / centred.std(correction=0).clamp_min(1e-300)
