"""Fitting a prior to images: covariance shrunk by Ledoit and Wolf, kept as components and a remainder.

Few images make a covariance S that is singular and whose large eigenvalues are too large. With
a = the shrinkage of Ledoit and Wolf (J. Multivariate Anal. 88, 2004) the estimate is
(1 - a) S + a (tr S / d) I, which is components and a remainder exactly. Where fewer components are kept
than S has, the remainder is the mean of the eigenvalues left out, which keeps the trace (Tipping and
Bishop, J. R. Stat. Soc. B 61, 1999, Eq. 8). Not valid beyond second moments: pixels in [0, 1] aren't Gaussian.

A prior that the data contradict, far tighter than they are, makes everything known already and nothing left to reveal:
what an attacker is taken to know must allow for what is there. Under N(mu, C) the squared Mahalanobis distance
(x - mu)^T C^-1 (x - mu) / d of an input has mean 1. Real images under priors fitted to others come to 0.6 to 2.4 on
average and up to 8 (MNIST, CIFAR-10), far from the chi-square law, so the limits are wide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from riskaudit.errors import PriorError, SettingsError
from riskaudit.inputs import Samples
from riskaudit.priors.base import Prior
from riskaudit.priors.gaussian import ClassPrior, GaussianPrior, Origin

FITTED_KINDS = ("data", "class")
# Of fewer images than this the shrinkage itself is guesswork (of two it is 0, as if all images lay on one line), and
# the mean is off by over a fifth of a standard deviation (1 / sqrt(20)): all images together then say more of a new
# image than its class does, and of fewer in all an isotropic prior says it more honestly.
MIN_IMAGES = 20
# Components kept unless told otherwise: all of small images, while a file stays below a few hundred MB.
DEFAULT_COMPONENTS = 1024
# The least remainder, relative to the mean variance: less is rounding, and would make the inverse root so.
SMALLEST_REMAINDER = 1e-9
# Mean squared deviations, in the prior's own standard deviations, of half the samples of a batch: four of them.
MOST_OF_MEDIAN = 16.0
# From here on the prior is tighter than the data look, and that is said; of images under fitted priors medians are 0.8
# to 2.3.
TIGHT_MEDIAN = 3.0
# Of any sample, whatever the others are like: 220 of them, as of inputs 100 times too large.
# Below, a sample is odd rather than the prior wrong, and is named.
MOST_OF_ONE = 5e4


def fit_prior(samples: Samples, kind: str = "data", components: int | None = None) -> Prior:
    """A Gaussian prior from images.

    Args:
        samples: at least `MIN_IMAGES`, not all equal.
        kind: "data" for one Gaussian, "class" for one per class with `MIN_IMAGES` images or more.
        components: principal components kept per Gaussian at most; None for `DEFAULT_COMPONENTS`.

    Raises:
        SettingsError: an unknown kind, fewer than one component.
        PriorError: the samples can't provide such a prior.
    """
    if kind not in FITTED_KINDS:
        raise SettingsError(f"expected the kind of a fitted prior to be {' or '.join(FITTED_KINDS)}, found {kind!r}")
    if components is not None and components < 1:
        raise SettingsError(f"expected `components` of at least 1, found {components}")
    limit = DEFAULT_COMPONENTS if components is None else components
    targets = samples.targets
    are_classes = targets.ndim == 1 and not targets.is_floating_point()
    counts = dict(sorted(Counter(map(int, targets.tolist())).items())) if are_classes else {}
    origin = Origin(samples.name, samples.sha256, len(samples), counts)
    everything = fit_gaussian(samples.inputs, limit, origin)
    if kind == "data":
        return everything
    if not are_classes:
        raise PriorError(f"a prior per class needs class labels, but {samples.name} has other targets; fit kind data")
    return ClassPrior(
        everything,
        {
            target: fit_gaussian(
                samples.inputs[targets == target],
                limit,
                replace(origin, num_images=count, class_counts={target: count}),
            )
            for target, count in counts.items()
            if count >= MIN_IMAGES and _varied(samples.inputs[targets == target])
        },
    )


def fit_gaussian(inputs: Tensor, components: int, origin: Origin) -> GaussianPrior:
    """Mean and shrunk covariance of inputs [N, *S], with so many components at most.

    Raises:
        PriorError: fewer than `MIN_IMAGES` inputs, or all are equal.
    """
    values = inputs.detach().cpu().double().flatten(1)
    num_images, dimension = values.shape
    mean = values.mean(0)
    centred = values - mean
    if num_images < MIN_IMAGES or not _varied(inputs):
        described = f"{num_images}" if num_images < MIN_IMAGES else f"{num_images} equal ones"
        raise PriorError(
            f"expected at least {MIN_IMAGES} samples that differ in {origin.source or 'the data'} to fit a prior to, "
            f"found {described}; fit it to more, or use the isotropic prior"
        )
    total = float(centred.square().sum()) / num_images
    spread = total / dimension
    from sklearn.covariance import ledoit_wolf_shrinkage

    shrinkage = float(ledoit_wolf_shrinkage(values.numpy())) if values.shape[1] > 1 else 0.0
    eigenvalues, directions = _principal_components(centred, min(components, dimension - 1, num_images - 1))
    shrunk = (1 - shrinkage) * eigenvalues + shrinkage * spread
    # tr C = tr S, so what the kept ones leave is shared by the others.
    remainder = float(total - shrunk.sum()) / (dimension - len(shrunk))
    remainder = max(remainder, SMALLEST_REMAINDER * spread)
    above = shrunk > remainder
    return GaussianPrior(
        mean=mean,
        components=directions[:, above].contiguous(),
        variances=shrunk[above] - remainder,
        remainder=remainder,
        input_shape=tuple(inputs.shape[1:]),
        origin=origin,
    )


def _varied(inputs: Tensor) -> bool:
    return bool((inputs != inputs[:1]).any())


def _principal_components(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [count] of S = X^T X / N, descending, and their vectors [d, count]."""
    num_images, dimension = centred.shape
    if num_images >= dimension:
        values, vectors = torch.linalg.eigh(centred.mT @ centred / num_images)
        return values.flip(0)[:count].clamp_min(0.0), vectors.flip(1)[:, :count]
    _, singular, rows = torch.linalg.svd(centred / num_images**0.5, full_matrices=False)
    return singular[:count].square(), rows[:count].mT


@torch.no_grad()
def squared_deviations(prior: Prior, inputs: Tensor, targets: Tensor, *, about_own_mean: bool = False) -> Tensor:
    """(x - mu)^T C^-1 (x - mu) / d of every input [B, *S], [B], float64; 1 on average under the prior.

    ``about_own_mean`` leaves out the mean of all entries of x - mu: one number off everywhere is a wrong mean.
    """
    flat = inputs.detach().flatten(1).double()
    bound = prior.bind(targets, flat)
    away = flat - bound.mean
    return bound.inverse_root(away - away.mean() if about_own_mean else away).square().mean(1)


def odd_samples(prior: Prior, inputs: Tensor, targets: Tensor, advice: str) -> list[int]:
    """Hold a prior against data, [B, *S] in data units; ``advice`` ends the message: what to do.

    Returns:
        Positions of samples that the prior makes next to impossible, while it allows for most.

    Raises:
        PriorError: half of the samples, or one of them by far, lie outside what the prior allows.
    """
    deviations = squared_deviations(prior, inputs, targets)
    median, most = float(deviations.median()), float(deviations.max())
    # NaN must fail the check.
    if not (median <= MOST_OF_MEDIAN and most <= MOST_OF_ONE):
        far = (median if median > MOST_OF_MEDIAN else most) ** 0.5
        raise PriorError(
            f"the data contradict the prior: their coordinates lie {far:.3g} of its standard deviations from its mean "
            f"(root mean square), where about 1 is expected; under it everything would seem known already; {advice}"
        )
    return [index for index, value in enumerate(deviations.tolist()) if value > MOST_OF_MEDIAN]


def tight_note(prior: Prior, inputs: Tensor, targets: Tensor) -> list[str]:
    """That the prior is much tighter than the data, which makes less of them seem revealed; for a result."""
    # A wrong mean changes nothing that is revealed.
    median = float(squared_deviations(prior, inputs, targets, about_own_mean=True).median())
    if not median > TIGHT_MEDIAN:
        return []
    return [
        f"the prior looks too tight: the data's coordinates lie {median**0.5:.2g} of its standard deviations from "
        "their mean, where about 1 is expected, so that less seems revealed than is; give the prior of data like these"
    ]


def odd_note(ids: Sequence[str], positions: Sequence[int]) -> list[str]:
    """A warning that names odd samples, for a result."""
    if not positions:
        return []
    named = ", ".join(ids[position] for position in positions[:5]) + (" and others" if len(positions) > 5 else "")
    return [
        f"the prior makes {len(positions)} of {len(ids)} samples next to impossible ({named}): what it says of them is "
        "doubtful, and less than an attacker might learn"
    ]
