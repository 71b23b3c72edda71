"""Fitting a prior to images: covariance shrunk by Ledoit and Wolf, kept as components and a remainder.

Few images make a covariance S that is singular and whose large eigenvalues are too large. With
a = the shrinkage of Ledoit and Wolf (J. Multivariate Anal. 88, 2004) the estimate is
(1 - a) S + a (tr S / d) I, which is components and a remainder exactly. Where fewer components are kept
than S has, the remainder is the mean of the eigenvalues left out, which keeps the trace (Tipping and
Bishop, J. R. Stat. Soc. B 61, 1999, Eq. 8). Not valid beyond second moments: pixels in [0, 1] aren't Gaussian.
"""

from __future__ import annotations

from collections import Counter
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
