"""``cocktail-party``: the samples of a batch as the independent sources of one layer's gradient.

Where a fully connected layer sees the whole input, its weight's gradient G = sum_b s_b x_b^T mixes the n samples
linearly, as microphones mix voices: its n leading right singular vectors are n mixtures of them, and independent
component analysis finds n directions that unmix these by making their entries as far from normal as can be, measured by
log cosh, and uncorrelated with one another (Kariyappa et al., "Cocktail Party Attack", ICML 2023, section 4). What is
sent may be a mean of gradients or a difference of weights: both are such sums.

The components are samples up to their scales. Where the range of the inputs is known, the size is the largest one that
exceeds no upper end, and the sign the one that leaves less below the lower end. Without a range both are the bias': its
gradient sum_b s_b is mixed in the same way, of ones in place of samples.
Images overlap, so that independence is an approximation: what comes back is a blend in which one sample dominates.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.analytic import WholeInputLayer, whole_input_layer
from riskaudit.attacks.base import Attack, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.optimise.search import without_guess
from riskaudit.results import Status

# E log cosh v of v ~ N(0, 1).
NORMAL_LOG_COSH = 0.3745672075
# Change of an unmixing direction at which the iteration ends.
TOLERANCE = 1e-7
# A singular value below the dtype's precision times this, relative to the largest, is rounding.
RANK = 1e2


@register
@final
@dataclass(frozen=True)
class CocktailParty(Attack):
    """Independent component analysis of the gradient of a layer that sees the whole input.

    Attributes:
        steps: iterations of one analysis, at most.
        restarts: starts, the first one at the singular vectors; the one furthest from normal is kept.
    """

    name: ClassVar[str] = "cocktail-party"
    title: ClassVar[str] = "Cocktail party attack"
    source: ClassVar[str] = "Kariyappa et al., ICML 2023"
    summary: ClassVar[str] = "Samples of a mean as independent components of a fully connected layer's gradient."

    steps: int = 200
    restarts: int = 4

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        began = time.perf_counter()
        labelled = with_labels(observation)
        layer = whole_input_layer(labelled.release, labelled.input_shape)
        fallback = without_guess(labelled, labelled.sample_prior())
        inputs, size = fallback.clone(), labelled.upload_size
        best = [_Separation(None, torch.inf, "failed", 0) for _ in range(len(labelled))]
        for number, released in enumerate(labelled.released.double()):
            if not bool(torch.isfinite(released).all()):
                continue
            mixtures, ones = _mixtures(labelled, layer, released)
            for turn in range(self.restarts):
                labelled.check_time()
                found = _separate(mixtures, _start(len(mixtures), None if turn == 0 else generator), self.steps)
                best[number] = found if found.objective < best[number].objective else best[number]
            unmixing = best[number].unmixing
            if unmixing is not None:
                points = _rescaled(labelled, layer, unmixing @ mixtures, unmixing @ ones)
                inputs[number * size : number * size + len(points)] = points.to(inputs)
        status: list[Status] = [found.status for found in best]
        return Reconstruction(
            inputs=labelled.images(inputs.reshape(len(labelled), -1)),
            objective=torch.tensor([found.objective for found in best], dtype=torch.float64, device=inputs.device),
            status=tuple(status),
            steps=torch.tensor([found.steps for found in best], device=inputs.device),
            restarts=self.restarts,
            seconds=time.perf_counter() - began,
            targets=labelled.known_targets,
        )


@dataclass(frozen=True, eq=False)
class _Separation:
    """Unmixing directions [r, r] of r mixtures, minus how far from normal what they make is, and how it ended."""

    unmixing: Tensor | None
    objective: float
    status: Status
    steps: int


def _mixtures(observation: Observation, layer: WholeInputLayer, released: Tensor) -> tuple[Tensor, Tensor]:
    """Leading right singular vectors of the weight's gradient [r, d], r <= n, and the same mixtures of ones [r]."""
    gradient = released[layer.weight].reshape(-1, observation.dimension)
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    precision = float(torch.finfo(observation.released.dtype).eps)
    rank = max(1, min(observation.upload_size, int((values > RANK * precision * values[0]).sum())))
    ones = left[:, :rank].T @ released[layer.bias] / values[:rank].clamp(min=1e-300)
    return right[:rank], ones


def _start(rank: int, generator: torch.Generator | None) -> Tensor:
    """Orthonormal directions [r, r]: the mixtures' own without a generator, else random ones."""
    if generator is None:
        return torch.eye(rank, dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
    return directions


def _separate(mixtures: Tensor, start: Tensor, steps: int) -> _Separation:
    """FastICA of mixtures [r, d], whose entries are its observations."""
    from sklearn.decomposition import FastICA

    analysis = FastICA(
        len(mixtures), fun="logcosh", whiten="unit-variance", w_init=start.numpy(), max_iter=steps, tol=TOLERANCE
    )
    with warnings.catch_warnings():
        # That its steps were used up is said by the status.
        warnings.simplefilter("ignore")
        analysis.fit(mixtures.T.cpu().numpy())
    unmixing = torch.from_numpy(analysis.components_).to(mixtures)
    components = unmixing @ mixtures
    centred = components - components.mean(1, keepdim=True)
    # Of large numbers log cosh v is |v| - log 2.
    log_cosh = torch.logaddexp(centred, -centred) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    objective = -float((log_cosh.mean(1) - NORMAL_LOG_COSH).square().sum())
    if not torch.isfinite(torch.tensor(objective)):
        return _Separation(None, torch.inf, "failed", 0)
    is_settled = analysis.n_iter_ < steps
    return _Separation(unmixing, objective, "converged" if is_settled else "not_converged", int(analysis.n_iter_))


def _rescaled(observation: Observation, layer: WholeInputLayer, components: Tensor, ones: Tensor) -> Tensor:
    """Samples [r, d] from components [r, d], which are multiples of what enters the layer, and those of 1 [r]."""
    entering = components * torch.where(ones < 0, -1.0, 1.0)[:, None] / layer.scale
    # Of x - offset every row is now a positive multiple.
    offset, sizes = -layer.shift / layer.scale, 1 / ones.abs().clamp(min=1e-300)
    if observation.input_range is None:
        return offset + sizes[:, None] * entering
    low, high = observation.input_range
    candidates = []
    for signed in (entering, -entering):
        room = torch.where(signed > 0, (high - offset) / signed, torch.inf).amin(1)
        room = torch.where(torch.isfinite(room) & (room > 0), room, sizes)
        candidates.append(offset + room[:, None] * signed)
    outside = [(points - points.clamp(low, high)).norm(dim=1) for points in candidates]
    chosen = torch.where((outside[0] <= outside[1])[:, None], candidates[0], candidates[1])
    return chosen.clamp(low, high)
