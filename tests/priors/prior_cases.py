"""Images with correlations, a prior of each kind fitted to them, and what dense numpy says of the same data."""

from __future__ import annotations

import numpy as np
import torch
from oracles import Array
from sklearn.covariance import ledoit_wolf

from riskaudit.inputs import Samples

SHAPE = (1, 3, 4)
DIMENSION = 12
# Class 2 has too few images for a prior of its own, class 7 has none at all.
COUNTS = {0: 40, 1: 25, 2: 5}


def samples(seed: int = 0) -> Samples:
    """Each class has a mean and correlations of its own."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for target, count in COUNTS.items():
        mixing = rng.standard_normal((DIMENSION, DIMENSION)) * np.geomspace(0.3, 0.01, DIMENSION)
        images.append(rng.standard_normal((count, DIMENSION)) @ mixing + 0.1 * target)
        labels += [target] * count
    inputs = torch.from_numpy(np.concatenate(images)).reshape(-1, *SHAPE)
    return Samples.from_tensors(inputs, torch.tensor(labels), name="made")


def shrunk(values: Array) -> tuple[Array, Array]:
    """Mean and Ledoit and Wolf's covariance of samples [N, d], by scikit-learn."""
    covariance, _ = ledoit_wolf(values)
    return values.mean(0), covariance


def values_of(data: Samples, target: int | None = None) -> Array:
    rows = data.inputs if target is None else data.inputs[data.targets == target]
    return rows.flatten(1).numpy()
