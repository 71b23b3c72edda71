"""``feature-matching``: gradients, and the features that are read off them, matched by what an untrained network draws.

    D(r(z), obs) + a_f (1 - |Q^T f(z)|^2 / |f(z)|^2) + a_tv TV(z) + a_bn BN(z)

Liu, Wang and Lei, "Data reconstruction attacks and defenses", section 4.2: the cosine distance, the features that the
method of moments recovers of the layer before the last two (`method_of_moments`), total variation, batch-norm
statistics, and a deep image prior: z is made by a small U-Net, over whose weights the whole is minimised. Weights and
rates of the paper aren't known; those here are this package's own. Of inputs that aren't images the coordinates
themselves are searched for.

Directions from moments have an error of the order of n sqrt(D / m). Where the weight's gradient of a fully connected
layer is sent, its row space is the span of the features that enter the layer, without such an error: that is the
default, and what stands in where moments don't tell features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.linear_layers import linear_calls
from riskaudit.attacks.matching import CosineDistance, LayerWeights
from riskaudit.attacks.method_of_moments import UNEXPLAINED, Features, places_of, recover_features
from riskaudit.attacks.optimise.batch_norms import BatchNormStatistics
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.features import FeatureDistance
from riskaudit.attacks.optimise.image_prior import NetworkDescent
from riskaudit.attacks.optimise.minimisers import Minimiser
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.attacks.optimise.regularisers import TotalVariation, has_pixels
from riskaudit.attacks.optimise.search import reconstruct
from riskaudit.attacks.optimise.starts import Start
from riskaudit.attacks.wide_layers import WideLayer, wide_layers

# A singular value below the dtype's precision times this, relative to the largest, is rounding.
RANK = 1e2


@register
@final
@dataclass(frozen=True)
class FeatureMatching(Attack):
    """Minimise the distances of gradients and of features with image priors; a weight of 0 leaves a term out.

    Attributes:
        steps: of Adam at most.
        restarts: random starts per upload.
        rate: step size, of the networks' weights with an image prior, else in the prior's standard deviations.
        feature: weight of the features.
        features: whether every sample's direction is matched, as far as moments tell it, or the span of an upload's.
        total_variation: weight of the mean absolute difference of neighbouring pixels.
        batch_norm: weight of the distance from the batch-norm statistics that are known.
        image_prior: whether images are made by a network.
        layer_weights: see `CosineDistance`.
        start: kind of the first guesses, which are the networks' inputs with an image prior.
    """

    name: ClassVar[str] = "feature-matching"
    title: ClassVar[str] = "Feature matching"
    source: ClassVar[str] = "Liu, Wang and Lei, section 4.2"
    matching: ClassVar[Literal["l2", "cosine"] | None] = "cosine"
    summary: ClassVar[str] = "Cosine distance and recovered features, with image priors and a network that draws."
    grid: ClassVar[tuple[Mapping[str, object], ...]] = (
        {},
        {"feature": 0.3},
        {"features": "directions"},
        {"total_variation": 1e-2},
        {"image_prior": False, "rate": 0.1},
        {"feature": 0.0},
    )

    steps: int = 4800
    restarts: int = 1
    rate: float = 3e-3
    feature: float = 0.03
    features: Literal["span", "directions"] = "span"
    total_variation: float = 1e-4
    batch_norm: float = 0.1
    image_prior: bool = True
    layer_weights: LayerWeights = "equal"
    start: Start = "gaussian"

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        labelled = with_labels(observation)
        terms = [Term(TotalVariation(), self.total_variation), Term(BatchNormStatistics(), self.batch_norm)]
        if self.feature > 0:
            terms.append(Term(known_features(labelled, self.features, generator), self.feature))
        used = tuple(term for term in terms if term.weight > 0)
        return reconstruct(
            labelled,
            generator,
            lambda known: Objective.of(known, self.restarts, CosineDistance(self.layer_weights), used),
            self._minimiser(labelled, generator),
            self.start,
            self.restarts,
        )

    def _minimiser(self, observation: Observation, generator: torch.Generator) -> Minimiser:
        if not self.image_prior or not has_pixels(observation.input_shape):
            return Descent(self.steps, self.rate, signed=True, schedule="steps", box=observation.input_range)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        shape, box = observation.input_shape, observation.input_range
        return NetworkDescent(shape, seed, self.steps, self.rate, box=box)


def known_features(
    observation: Observation, features: Literal["span", "directions"], generator: torch.Generator
) -> FeatureDistance:
    """What is known of the features of every sample; the targets must be known.

    Args:
        observation: of the uploads.
        features: see `FeatureMatching`.
        generator: of the method of moments, on the CPU.

    Raises:
        AttackNotApplicable: no fully connected layer whose weight is sent sees one row per sample.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    try:
        layer = wide_layers(observation)[-1]
        if features == "span" and layer.own is not None:
            return _spanned(observation, layer.name)
        bases = [
            _told(upload, layer, recover_features(upload, layer, "gradient", 2, torch.Generator().manual_seed(seed)))
            for upload in (observation.select([number]) for number in range(len(observation)))
        ]
        return FeatureDistance(layer.name, tuple(basis for each in bases for basis in each))
    except AttackNotApplicable:
        return _spanned(observation, None)


def _told(upload: Observation, layer: WideLayer, features: Features | None) -> list[Tensor]:
    """Bases of the samples of one upload: directions where moments tell them apart, else the span of all."""
    size, dimension = upload.upload_size, layer.weights.shape[1]
    if features is None:
        return [layer.weights.new_zeros(0, dimension)] * size
    if features.unexplained <= UNEXPLAINED and len(features.values) == size:
        directions = features.values / features.values.norm(dim=1, keepdim=True).clamp_min(1e-300)
        places = places_of(upload.known_targets, features, layer)
        return [directions[[places.index(place)]] for place in range(size)]
    rows = features.values if layer.own is None else upload.released[0, layer.own].double().reshape(-1, dimension)
    return [_row_space(rows, size, upload.released.dtype)] * size


def _spanned(observation: Observation, name: str | None) -> FeatureDistance:
    """The row spaces of the gradient of a fully connected layer; the last one's whose weight is sent, without a name.

    Raises:
        AttackNotApplicable: there is none that sees one row per sample.
    """
    release = observation.release
    probes = torch.zeros(3, *observation.input_shape, dtype=release.dtype, device=release.device)
    calls, _ = linear_calls(release, probes)
    sent = [call for call in calls if call.weight is not None and call.inputs.ndim == 2 and len(call.inputs) == 3]
    sent = [call for call in sent if name in (None, call.name)]
    if not sent:
        raise AttackNotApplicable("features are read off the gradient of a fully connected layer, and none is sent")
    layer, size, bases = sent[-1], observation.upload_size, list[Tensor]()
    for released in observation.released:
        gradient = released[layer.weight].double().reshape(-1, layer.inputs.shape[1])
        finite = bool(torch.isfinite(gradient).all())
        bases += [_row_space(gradient, size, released.dtype) if finite else gradient[:0]] * size
    return FeatureDistance(layer.name, tuple(bases))


def _row_space(rows: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The leading right singular vectors of a matrix, at most so many, [k, D]; those of rounding are left out."""
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((values > RANK * torch.finfo(dtype).eps * values[0]).sum())
    basis: Tensor = right[: min(rank, count)]
    return basis
