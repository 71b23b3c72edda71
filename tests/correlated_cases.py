"""Networks with their images, and priors fitted to such images, for tests of correlated priors."""

from __future__ import annotations

from functools import lru_cache

import cases
import numpy as np
import oracles

from riskaudit.inputs import Samples
from riskaudit.priors import ClassPrior, GaussianPrior, Prior, fit_prior

MODELS = {
    "lenet": (lambda: cases.lenet(8), cases.digits),
    "batch-norm": (cases.residual, cases.digits),
    "colour-mlp": (lambda: cases.mlp((48, 24, 10)), cases.colour_squares),
}


@lru_cache
def prior_for(model: str, kind: str) -> Prior:
    """Fitted to 250 images, so that some classes fall back."""
    known = MODELS[model][1](250)
    samples = Samples.from_tensors(known.inputs, known.targets)
    return fit_prior(samples, components=5) if kind == "few-components" else fit_prior(samples, kind)


def moments(prior: Prior, target: int) -> tuple[oracles.Array, oracles.Array]:
    """mu and C by numpy from what the prior holds."""
    one = prior.classes.get(target, prior.everything) if isinstance(prior, ClassPrior) else prior
    assert isinstance(one, GaussianPrior)
    components = one.components.numpy()
    return one.mean.numpy(), (components * one.variances.numpy()) @ components.T + one.remainder * np.eye(one.dimension)
