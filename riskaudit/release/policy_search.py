"""Which policy to transform images by: the two scores of ATS on one's own data, without any training or attack.

Gao et al., CVPR 2021, as their code computes them. Privacy, lower is safer: how fast the gradient turns towards that of
T(x) along the way from noise to T(x), the area under

    mean over parameters of cos(g(x_t), g(T(x))),  x_t = (t / 20) T(x) + (1 - t / 20) noise,  t = 0 ... 20

Accuracy, higher is better: -sum_k (log(v_k + 1e-5) + 1 / (v_k + 1e-5)) over the eigenvalues v_k of the correlation
matrix of the outputs' derivatives in groups of 100 images. They score privacy on a model trained on a tenth of the
data, accuracy on an untrained one, and take the safest policy of those with an accuracy of -85 at least (1600 drawn).

The privacy score says how far an attack by descent has to search, not what a gradient gives away: audit the policy that
is chosen (``release="ats:..."``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from riskaudit.errors import ReleaseError
from riskaudit.release.augmentation import transform
from riskaudit.release.model import LossFunction, ModelFunction
from riskaudit.release.transformation import LIBRARY, Transformation

POINTS, GROUP = 20, 100
# What keeps logarithms of eigenvalues finite.
OFFSET = 1e-5
# The authors' least accuracy score, which grows with the size of a group: of `GROUP` images.
LEAST_ACCURACY = -85.0


@dataclass(frozen=True)
class PolicyScore:
    """Both scores of a policy.

    Attributes:
        policy: as ``ats`` takes it.
        privacy: between -1 and 1, lower is safer; the mean over the images.
        accuracy: higher is better; the mean over the groups of images.
    """

    policy: str
    privacy: float
    accuracy: float


def draw_policies(count: int, length: int = 3, seed: int = 0) -> list[Transformation]:
    """Distinct policies of so many entries of the library at most, drawn at random."""
    numbers, draws = list(LIBRARY), np.random.default_rng(seed)
    most = sum(len(numbers) ** size for size in range(1, length + 1))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(count, most):
        drawn = draws.integers(-1, len(numbers), length).tolist()
        entries = tuple(numbers[place] for place in drawn if place >= 0)
        if entries:
            found.setdefault(entries)
    return [Transformation((entries,), seed) for entries in found]


def search_policies(
    model: nn.Module,
    loss: LossFunction,
    images: Tensor,
    targets: Tensor,
    policies: Sequence[Transformation],
    *,
    untrained: nn.Module | None = None,
    num_private: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> list[PolicyScore]:
    """Scores of policies, the safest first.

    Args:
        model: in eval mode, trained a little; privacy is scored on it.
        loss: ``loss(outputs [1, ...], targets [1, ...])`` to a scalar.
        images: [N, C, H, W] in [0, 1], of the model's dtype.
        targets: [N, ...].
        policies: to be scored, from `draw_policies` or named.
        untrained: whose accuracy score counts; the same model by default.
        num_private: images that privacy is scored on, at most.
        progress: called as ``progress(done, total)`` after every policy.

    Raises:
        ReleaseError: fewer than two images, a model that has no gradient (see `ModelFunction`), or one whose outputs
            don't depend on an image.
    """
    if len(images) < 2:
        raise ReleaseError(f"expected two images at least to score policies on, found {len(images)}; add some")
    private, useful = ModelFunction(model, loss), ModelFunction(untrained or model, loss)
    scores = []
    for done, transformation in enumerate(policies, 1):
        transformed = transform(images, transformation)
        privacy = [
            privacy_score(private, image, target, transformation.seed + place)
            for place, (image, target) in enumerate(zip(transformed[:num_private], targets, strict=False))
        ]
        groups = [group for group in torch.split(transformed, GROUP) if len(group) == min(GROUP, len(images))]
        accuracy = [accuracy_score(useful, group) for group in groups]
        scores.append(PolicyScore(transformation.policy, float(np.mean(privacy)), float(np.mean(accuracy))))
        if progress is not None:
            progress(done, len(policies))
    return sorted(scores, key=lambda score: score.privacy)


def safest(scores: Sequence[PolicyScore], least_accuracy: float | None) -> PolicyScore | None:
    """The policy of the lowest privacy score among those of enough accuracy, None where there is none.

    Args:
        scores: of the policies.
        least_accuracy: None to let all of them pass.
    """
    enough = (score for score in scores if least_accuracy is None or score.accuracy >= least_accuracy)
    return min(enough, key=lambda score: score.privacy, default=None)


def privacy_score(function: ModelFunction, image: Tensor, target: Tensor, seed: int = 0) -> float:
    """Area under the gradient's cosine on the way from noise to an image [C, H, W], over its length."""
    drawn = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps = torch.linspace(0, 1, POINTS + 1, dtype=image.dtype, device=image.device).reshape(-1, 1, 1, 1)
    points = steps * image + (1 - steps) * drawn.to(image)
    gradients: Tensor = vmap(function.sample_gradient, in_dims=(0, None))(points, target)
    sizes = [value.numel() for value in function.parameters.values()]
    pieces = torch.split(gradients, sizes, dim=1)
    cosine = torch.stack([F.cosine_similarity(piece, piece[-1:], dim=1) for piece in pieces]).mean(0)
    return float(torch.trapezoid(cosine)) / POINTS


def accuracy_score(function: ModelFunction, images: Tensor) -> float:
    """How differently the outputs depend on several images [B, C, H, W] (Mellor et al., ICML 2021)."""
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        (derivatives,) = torch.autograd.grad(function.run(function.parameters, inputs).sum(), inputs)
    rows = derivatives.flatten(1).double().cpu().numpy()
    if not np.isfinite(rows).all() or not rows.std(axis=1).all():
        raise ReleaseError(
            "expected outputs whose derivatives differ over an image's pixels, found an image whose outputs don't "
            "depend on it, or aren't finite; leave that image out, or take another model for the accuracy score"
        )
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(rows)) + OFFSET
    # Rounding may take an eigenvalue of 0 below it.
    return -float(np.sum(np.log(eigenvalues.clip(OFFSET)) + 1 / eigenvalues.clip(OFFSET)))
