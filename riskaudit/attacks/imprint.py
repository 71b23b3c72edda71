"""``imprint``: samples alone between two thresholds of a layer that a malicious server planted.

Unit i of an imprint layer is active where w . x > t_i, with one w for all units and thresholds t_1 < ... < t_k at
quantiles of w . x; what follows treats the units alike, up to a factor c_i. Every sample above t_i adds c_i s x to the
gradient of row i, and c_i s to that of its bias, so that the difference of two neighbouring units, each divided by its
c_i, is made of the samples in the bin (t_i, t_(i+1)] alone. Of a single one the quotient is the sample (Fowl et al.,
"Robbing the Fed", ICLR 2022, section 3.1).

Of several samples in one bin the quotient is a mixture, which looks like a sample. It is told apart by what the model
makes of it: a single sample x with its label adds a known amount to the bias' gradient. What doesn't add that amount is
not passed on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.analytic import WholeInputLayer, whole_input_layer
from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.linear_layers import ROUNDING
from riskaudit.attacks.optimise.search import without_guess
from riskaudit.release import Batch, Release
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.steps.clip import Clip
from riskaudit.results import Status

# Cosine from which on two rows ask the same question.
PARALLEL = 0.999
# Exponent of the dtype's precision: relative error at which two amounts are one.
AGREEMENT = 0.4
# Standard deviations of the noise that a difference must exceed, and that a single sample may be off by.
CLEAR = 4.0
# Rows compared with all others together.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class ImprintLayer:
    """Units of one direction, by ascending threshold.

    Attributes:
        layer: where its gradients lie in a released vector, and what stands before it.
        units: which rows of the layer, [k].
        direction: the first unit's row w, [d].
        thresholds: of w . x, x as it enters the layer, ascending, [k].
        factors: c, what follows the layer multiplies a unit by, relative to the first, [k]; float64.
        kept: which entries of these units' rows the release keeps, [k, d], bool.
    """

    layer: WholeInputLayer
    units: Tensor
    direction: Tensor
    thresholds: Tensor
    factors: Tensor
    kept: Tensor

    def rows(self, released: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the units' rows [k, d] and biases [k] in one released vector, divided by c."""
        rows = released[self.layer.weight].double().reshape(-1, len(self.direction))[self.units]
        biases = released[self.layer.bias].double()[self.units]
        return rows / self.factors[:, None], biases / self.factors


@register
@final
@dataclass(frozen=True)
class Imprint(Attack):
    """Read single samples off the differences of an imprint layer's units.

    An upload is "converged" where all its samples were read. Otherwise those that weren't stand at the prior's mean.
    ``steps`` and ``restarts`` have no effect.
    """

    name: ClassVar[str] = "imprint"
    title: ClassVar[str] = "Robbing the Fed"
    source: ClassVar[str] = "Fowl et al., ICLR 2022, section 3.1"
    summary: ClassVar[str] = "Single samples of a mean, in closed form, from a layer that a malicious server planted."

    steps: int = 1
    restarts: int = 1

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        began = time.perf_counter()
        labelled = with_labels(observation)
        layer = imprint_layer(labelled)
        fallback = without_guess(labelled, labelled.sample_prior())
        inputs, size = fallback.clone(), labelled.upload_size
        objective: list[float] = []
        status: list[Status] = []
        for number in range(len(labelled)):
            upload, own = labelled.select([number]), slice(number * size, (number + 1) * size)
            inputs[own], num_read, unexplained = _read(upload, layer, fallback[own])
            is_finite = bool(torch.isfinite(upload.released).all())
            objective.append(unexplained if is_finite else torch.inf)
            status.append("failed" if not is_finite else "converged" if num_read == size else "not_converged")
        return Reconstruction(
            inputs=labelled.images(inputs.reshape(len(labelled), -1)),
            objective=torch.tensor(objective, dtype=torch.float64, device=inputs.device),
            status=tuple(status),
            steps=torch.ones(len(labelled), dtype=torch.long, device=inputs.device),
            restarts=1,
            seconds=time.perf_counter() - began,
            targets=labelled.known_targets,
        )


def imprint_layer(observation: Observation) -> ImprintLayer:
    """The imprint layer of the observed model; the targets must be known.

    Raises:
        AttackNotApplicable: there is none, or the release is none that its differences can be read off.
    """
    release = observation.release
    if isinstance(release, LocalTrainingRelease):
        raise AttackNotApplicable("samples can be read off the mean of gradients only, not off a difference of weights")
    for step in release.spec.all_steps:
        if not step.keeps_noise and not isinstance(step, Clip):
            raise AttackNotApplicable(f"'{step}' leaves no differences of units that are made of single samples")
    layer = whole_input_layer(release, observation.input_shape)
    units, direction, thresholds = _ladder(release, layer, observation.dimension)
    gradients = _at_probes(observation, layer, direction, thresholds)
    biases = gradients[:, layer.bias].double()[:, units]
    rows = gradients[:, layer.weight].double().reshape(len(gradients), -1, observation.dimension)[:, units]
    sent = (biases != 0).all(0)
    if int(sent.sum()) < 2:
        raise AttackNotApplicable("units of the layer that sees the whole input don't stay active above a threshold")
    biases, rows = biases[:, sent], rows[:, sent]
    factors = biases / biases[:, :1]
    if not bool(((factors - factors[0]).abs() <= _agreement(release) * factors[0].abs()).all()):
        raise AttackNotApplicable(
            "what follows the layer treats its units differently, so that their differences are no single samples"
        )
    return ImprintLayer(layer, units[sent], direction, thresholds[sent], factors[0], (rows != 0).any(0))


def _ladder(release: Release, layer: WholeInputLayer, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    """Units of the largest set of rows that are positive multiples of one, the first's row, and thresholds along it.

    Raises:
        AttackNotApplicable: no two rows are.
    """
    values = torch.cat([release.parameters[name].detach().reshape(-1) for name in release.sent.shapes]).double()
    weight, bias = values[layer.weight].reshape(-1, dimension), values[layer.bias]
    directions = F.normalize(weight, dim=1)
    counts = torch.cat([(block @ directions.T >= PARALLEL).sum(1) for block in torch.split(directions, ROWS_AT_ONCE)])
    units = (directions @ directions[counts.argmax()] >= PARALLEL).nonzero()[:, 0]
    if len(units) < 2:
        raise AttackNotApplicable("the layer that sees the whole input is no imprint layer: its rows aren't multiples")
    first = weight[units[0]]
    thresholds = -bias[units] * first.square().sum() / (weight[units] @ first)
    order = thresholds.argsort()
    distinct = torch.cat([torch.ones_like(order[:1], dtype=torch.bool), thresholds[order].diff() > 0])
    return units[order[distinct]], first, thresholds[order[distinct]]


def _at_probes(observation: Observation, layer: WholeInputLayer, direction: Tensor, thresholds: Tensor) -> Tensor:
    """What single samples of several labels and sizes that activate all units would add to an upload, [N, P']."""
    generator = torch.Generator().manual_seed(0)
    span = float((thresholds[-1] - thresholds[0]).clamp(min=1e-300))
    labels = torch.unique(observation.known_targets, dim=0)
    found = []
    for number, beyond in enumerate((0.1, 0.5, 1.0)):
        drawn = torch.randn(len(direction), generator=generator, dtype=torch.float64).to(direction)
        drawn -= direction * (drawn @ direction - thresholds[-1] - beyond * span) / direction.square().sum()
        found.append(_alone(observation, (drawn - layer.shift) / layer.scale, labels[number % len(labels)]))
    return torch.stack(found)


def _alone(observation: Observation, point: Tensor, label: Tensor) -> Tensor:
    """What one sample [d] with a label adds to an upload, [P']: 1/n of an upload of n such samples."""
    observation.check_time()
    size = observation.upload_size
    inputs = point.to(observation.released).reshape(observation.input_shape).expand(size, *observation.input_shape)
    numbers = None if observation.numbers is None else observation.numbers[:1]
    with torch.no_grad():
        batch = Batch(inputs.clone(), label.expand(size, *label.shape).clone(), size, numbers)
        return observation.jacobian(batch).mean()[0] / size


def _agreement(release: Release) -> float:
    return float(torch.finfo(release.dtype).eps ** AGREEMENT)


def _read(upload: Observation, imprint: ImprintLayer, fallback: Tensor) -> tuple[Tensor, int, float]:
    """The samples of one upload: those alone in a bin, and ``fallback`` [n, d] where there is none.

    Returns:
        [n, d], each in a place of its label; how many were read; squares of what no single sample explains.
    """
    inputs = fallback.clone()
    row_sums, bias_sums = imprint.rows(upload.released[0])
    none = torch.zeros_like(row_sums[:1])
    rows, biases = row_sums - torch.cat([row_sums[1:], none]), bias_sums - torch.cat([bias_sums[1:], none[0, :1]])
    kept = imprint.kept & torch.cat([imprint.kept[1:], torch.ones_like(imprint.kept[:1])])
    allowed = _noise_of_differences(upload.release, imprint)
    # Of neighbours that hold the same samples the difference is rounding, or noise. From twice what a single sample may
    # be off by, two samples of one class are told from one.
    rounding = torch.finfo(upload.release.dtype).eps * ROUNDING * bias_sums.abs().max()
    open_places = dict.fromkeys(range(upload.upload_size))
    unexplained = float((rows * kept).square().sum() + biases.square().sum())
    for place in (biases.abs() > torch.maximum(2 * allowed, rounding)).nonzero()[:, 0].tolist():
        entering = rows[place] / biases[place]
        point = torch.where(kept[place], (entering - imprint.layer.shift) / imprint.layer.scale, fallback[0].double())
        chosen = _explained_by(upload, imprint, point, place, biases, allowed, list(open_places))
        if chosen is not None:
            inputs[chosen] = point.to(inputs)
            del open_places[chosen]
            unexplained -= float((rows[place] * kept[place]).square().sum() + biases[place].square())
    return inputs, upload.upload_size - len(open_places), max(unexplained, 0.0)


def _noise_of_differences(release: Release, imprint: ImprintLayer) -> Tensor:
    """What noise alone may make of the difference of two biases, [k]."""
    if release.noise is None:
        return torch.zeros_like(imprint.factors)
    variances = (CLEAR * release.noise.std / imprint.factors).square()
    return (variances + torch.cat([variances[1:], torch.zeros_like(variances[:1])])).sqrt()


def _explained_by(
    upload: Observation,
    imprint: ImprintLayer,
    point: Tensor,
    place: int,
    differences: Tensor,
    allowed: Tensor,
    open_places: list[int],
) -> int | None:
    """An open place of the upload with whose label a single sample makes a bin's difference; None where there is none.

    A point that doesn't lie in the bin makes none.
    """
    difference = float(differences[place])
    tolerance = _agreement(upload.release) * abs(difference) + float(allowed[place])
    targets = upload.known_targets
    tried: list[Tensor] = []
    for open_place in open_places:
        label = targets[open_place]
        if any(torch.equal(label, other) for other in tried):
            continue
        tried.append(label)
        _, biases = imprint.rows(_alone(upload, point, label))
        following = float(biases[place + 1]) if place + 1 < len(biases) else 0.0
        if abs(float(biases[place]) - following - difference) <= tolerance:
            return open_place
    return None
