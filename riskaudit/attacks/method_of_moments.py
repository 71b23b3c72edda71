"""``method-of-moments``: samples of a mean from the moments of one layer's gradient over another's random weights.

Of two fully connected layers with an activation s between them, z -> A s(W z + b), the gradient of A is, unit by unit,
sum_i r_i s(w_j . z_i + b_j) over the samples of an upload, r_i being what comes back to the second layer's outputs.
With random w_j its Hermite tensors are sums of powers of the z_i (`riskaudit.attacks.moments`), whose decomposition
gives the directions of the samples: Wang, Lee and Lei, AISTATS 2023; Liu, Wang and Lei, "Data reconstruction attacks
and defenses", theorem 3.1, whose error is of the order of B sqrt(d / m) with m units. Where the gradient of W is sent
as well, its leading singular vectors span the samples, and moments have to tell these apart only.

Signs: moments of odd order change theirs with z, those of even order don't. Where the activation has no even moments,
of a cross-entropy the only negative entry of r_i is that of the label. Lengths: the r_i add up to the gradient of the
second layer's bias. What neither tells, the range of the inputs decides, or the prior.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.moments import NEGLIGIBLE, ORDERS, Components, decompose, hermite_moments, principal_span
from riskaudit.attacks.optimise.search import without_guess
from riskaudit.attacks.wide_layers import WideLayer, wide_layers
from riskaudit.results import Status

# Share of the second layer's gradient, in squares, that features may leave unexplained and count as recovered.
UNEXPLAINED = 0.25
# A singular value below the dtype's precision times this, relative to the largest, is rounding.
RANK = 1e2
# Lengths that are tried, as factors of the likely one, and biases that stand for all.
LENGTHS, NUM_LENGTHS, NUM_BIASES = 32.0, 61, 16
# Pull of every length to the common one, relative to what the bias' gradient says.
PULL = 1e-3


@dataclass(frozen=True, eq=False)
class Features:
    """What entered a layer, of the samples of one upload.

    Attributes:
        values: z, as far as they are told, [k, D], k <= n; float64.
        signals: r_i up to positive factors, [C, k].
        unexplained: share of the second layer's gradient, in squares, that they leave.
        signed: whether their signs are known.
    """

    values: Tensor
    signals: Tensor
    unexplained: float
    signed: bool


@register
@final
@dataclass(frozen=True)
class MethodOfMoments(Attack):
    """Decompose the moments of a layer's gradient over random weights. ``steps`` has no effect.

    Attributes:
        span: whether the subspace of the samples is taken from the gradient of the first layer's weight, where that is
            sent, or from the moments, as in the papers.
        steps: none.
        restarts: decompositions, of which the one that explains the gradient best is kept.
    """

    name: ClassVar[str] = "method-of-moments"
    title: ClassVar[str] = "Method of moments"
    source: ClassVar[str] = "Wang, Lee and Lei, AISTATS 2023"
    summary: ClassVar[str] = "Samples of a mean by tensor decomposition, where a wide layer of random weights sees all."

    span: Literal["gradient", "moments"] = "gradient"
    steps: int = 1
    restarts: int = 2

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        began = time.perf_counter()
        labelled = with_labels(observation)
        layers = wide_layers(labelled)
        layer = next((each for each in layers if each.inputs is not None), None)
        if layer is None:
            raise AttackNotApplicable(
                f"what enters the layer {layers[-1].name} is more than the scaled input: moments give these features, "
                "which feature-matching goes by"
            )
        inputs, size = without_guess(labelled, labelled.sample_prior()).clone(), labelled.upload_size
        objective, status = list[float](), list[Status]()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        for number in range(len(labelled)):
            labelled.check_time()
            upload, own_generator = labelled.select([number]), torch.Generator().manual_seed(seed)
            found = recover_features(upload, layer, self.span, self.restarts, own_generator)
            objective.append(torch.inf if found is None else found.unexplained)
            status.append(_status(found))
            if found is not None:
                own = slice(number * size, (number + 1) * size)
                points = _inputs(labelled, layer, found)
                places = places_of(labelled.known_targets[own], found, layer)
                inputs[own][places] = points.to(inputs)
        return Reconstruction(
            inputs=labelled.images(inputs.reshape(len(labelled), -1)),
            objective=torch.tensor(objective, dtype=torch.float64, device=inputs.device),
            status=tuple(status),
            steps=torch.ones(len(labelled), dtype=torch.long, device=inputs.device),
            restarts=self.restarts,
            seconds=time.perf_counter() - began,
            targets=labelled.known_targets,
        )


def recover_features(
    upload: Observation,
    layer: WideLayer,
    span: Literal["gradient", "moments"],
    restarts: int,
    generator: torch.Generator,
) -> Features | None:
    """What entered a layer, of one upload's samples; None where what was released isn't finite.

    Args:
        upload: the observation of it.
        layer: of the model.
        span: see `MethodOfMoments`.
        restarts: decompositions.
        generator: on the CPU.

    Raises:
        AttackNotApplicable: the activation's moments can't tell several samples apart, or there are too few units.
    """
    released = upload.released[0].double()
    if not bool(torch.isfinite(released).all()):
        return None
    units, dimension = layer.weights.shape
    count = min(upload.upload_size, dimension)
    if units < 2 * count + 2:
        raise AttackNotApplicable(
            f"the {units} units of the layer {layer.name} are too few for moments of {count} samples"
        )
    moments = _moments_at(layer, released.new_tensor([layer.length]))[:, 0]
    sizes = {order: float(moments[order - 1].abs()) for order in (1, *ORDERS)}
    if count > 1 and max(sizes[order] for order in ORDERS) <= NEGLIGIBLE * sizes[1]:
        raise AttackNotApplicable(
            f"the activation after the layer {layer.name} is nearly linear: its moments beyond the first vanish, and "
            "samples can't be told apart by them"
        )
    rows, signals = _reduced(released[layer.outer].reshape(-1, units), upload.upload_size)
    if not len(signals):
        return None
    best: Features | None = None
    for _ in range(max(1, restarts)):
        directions = _span(upload, layer, span, signals, count, generator)
        parts = decompose(layer.weights, signals, directions, sizes, generator)
        parts = replace(parts, weights={order: rows @ each for order, each in parts.weights.items()})
        features = _resolved(released, layer, parts, moments)
        best = features if best is None or features.unexplained < best.unexplained else best
        if directions.shape[1] == 1:
            break
    return best


def _reduced(gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Columns [C, c] and rows [c, m] whose product is what samples can make of the second layer's gradient, c <= n."""
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    told = int((values > RANK * torch.finfo(torch.float64).eps * values[0]).sum())
    rank = min(samples, told)
    return left[:, :rank], values[:rank, None] * right[:rank]


def _span(
    upload: Observation,
    layer: WideLayer,
    span: Literal["gradient", "moments"],
    signals: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Orthonormal directions of the samples, [D, k]."""
    if span == "moments" or layer.own is None:
        return principal_span(layer.weights, signals, count, generator, layer.kurtosis)
    gradient = upload.released[0, layer.own].double().reshape(layer.weights.shape)
    _, values, right = torch.linalg.svd(gradient, full_matrices=False)
    precision = float(torch.finfo(upload.released.dtype).eps)
    rank = max(1, min(count, int((values > RANK * precision * values[0]).sum())))
    basis: Tensor = right[:rank].T
    return basis


def _moments_at(layer: WideLayer, lengths: Tensor) -> Tensor:
    """k_p of the activation, [4, L]."""
    quantiles = torch.linspace(0, 1, NUM_BIASES, dtype=torch.float64, device=lengths.device)
    return hermite_moments(layer.function, lengths, torch.unique(layer.biases.quantile(quantiles)))


def _resolved(released: Tensor, layer: WideLayer, parts: Components, moments: Tensor) -> Features:
    """Features with signs and lengths, as far as these are told."""
    odd, even = (max(orders, key=lambda order: float(moments[order - 1].abs())) for orders in ((1, 3), (2, 4)))
    has_odd, has_even = (bool(moments[order - 1].abs() > NEGLIGIBLE * moments.abs().max()) for order in (odd, even))
    leading = odd if has_odd else even
    signals = parts.weights[leading] / moments[leading - 1]
    signs = signals.new_ones(signals.shape[1])
    is_signed = False
    if has_odd and has_even:
        signs, is_signed = ((parts.weights[even] / moments[even - 1]) * signals).sum(0).sign(), True
    elif has_odd and layer.gives_logits:
        # p - onehot(label): the largest entry is that of the label, and negative.
        signs, is_signed = -signals.gather(0, signals.abs().argmax(0, keepdim=True))[0].sign(), True
    signs = torch.where(signs == 0, 1.0, signs)
    signals = signals * signs if has_odd else signals
    sums = None if layer.outer_bias is None else released[layer.outer_bias]
    lengths = _lengths(layer, signals * moments[leading - 1].abs(), sums, leading)
    values = (signs * lengths / layer.spread)[:, None] * parts.directions
    return Features(values, signals, _unexplained(released, layer, values), is_signed)


def _lengths(layer: WideLayer, sized: Tensor, sums: Tensor | None, order: int) -> Tensor:
    """|z_i| times the weights' spread, [k], from r_i |k_p(|z_i|)| [C, k] and the sums of the r_i [C].

    The likely length where the sums aren't sent, or say nothing.
    """
    likely = sized.new_full((sized.shape[1],), layer.length)
    if sums is None:
        return likely
    total = sized.sum(1)
    common = float(total @ sums / total.square().sum().clamp_min(1e-300))
    if not common > 0:
        return likely
    gram = sized.T @ sized
    pull = PULL * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factors = torch.linalg.solve(gram + pull, sized.T @ sums + pull.diagonal() * common)
    factors = factors.clamp(common / LENGTHS, common * LENGTHS)
    tried = layer.length * torch.logspace(-1, 1, NUM_LENGTHS, base=LENGTHS, dtype=torch.float64, device=sized.device)
    amounts = _moments_at(layer, tried)[order - 1].abs().clamp_min(1e-300).cummax(0).values
    # Straight lines between logarithms are exact for powers, such as the first moment of a ReLU without bias.
    found = np.interp(-factors.log().cpu().numpy(), amounts.log().cpu().numpy(), tried.log().cpu().numpy())
    return torch.from_numpy(found).to(sized).exp()


def _unexplained(released: Tensor, layer: WideLayer, values: Tensor) -> float:
    """Share of the second layer's gradient, in squares, that is no combination of the units' values at features."""
    gradient = released[layer.outer].reshape(-1, len(layer.weights))
    entering = layer.spread * values @ layer.weights.T + layer.biases
    units = layer.function(entering.reshape(-1)).reshape(entering.shape)
    told = torch.linalg.lstsq(units.T, gradient.T, driver="gelsd").solution
    left = (gradient.T - units.T @ told).square().sum() / gradient.square().sum().clamp_min(1e-300)
    return float(left)


def _inputs(observation: Observation, layer: WideLayer, features: Features) -> Tensor:
    """Inputs [k, d] of features of a layer that sees the whole input."""
    assert layer.inputs is not None
    scale, shift = layer.inputs
    candidates = [(sign * features.values - shift) / scale for sign in (1.0, -1.0)]
    if not features.signed:
        mean = observation.sample_prior().mean[:1].double()
        away = [(each - mean).norm(dim=1) for each in candidates]
        if observation.input_range is not None:
            away = [(each - each.clamp(*observation.input_range)).norm(dim=1) for each in candidates]
        candidates[0] = torch.where((away[0] <= away[1])[:, None], candidates[0], candidates[1])
    return candidates[0] if observation.input_range is None else candidates[0].clamp(*observation.input_range)


def places_of(targets: Tensor, features: Features, layer: WideLayer) -> list[int]:
    """A place of an upload's samples for every feature: one of its label, where the signals tell it."""
    count = features.signals.shape[1]
    if not layer.gives_logits or targets.is_floating_point() or targets.ndim != 1:
        return list(range(count))
    sized = features.signals / features.signals.norm(dim=0).clamp_min(1e-300)
    costs = sized.T[:, targets.clamp(0, len(sized) - 1)]
    _, places = linear_sum_assignment(costs.cpu().numpy())
    return [int(place) for place in places]


def _status(features: Features | None) -> Status:
    if features is None:
        return "failed"
    return "converged" if features.unexplained <= UNEXPLAINED else "not_converged"
