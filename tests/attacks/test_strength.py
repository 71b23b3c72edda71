"""What the attacks reach at their full size; minutes."""

from __future__ import annotations

import cases
import pytest
from contracts.attack import generator, observe, rmse

from riskaudit.attacks import BayesOptimal, DeepLeakage, GradInversion, InvertingGradients, explains

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "attack",
    [DeepLeakage(), InvertingGradients(), GradInversion(steps=4000, restarts=2, matching_weight=1.0)],
    ids=lambda attack: attack.name,
)
def test_undefended_mnist_is_reconstructed(attack: DeepLeakage) -> None:
    batch = cases.mnist(4)
    observation = observe(cases.lenet(), batch)
    found = attack.run(observation, generator())
    assert int((rmse(found.inputs, batch.inputs) < 0.02).sum()) >= 3
    assert sum(explains(observation, found)) >= 3


def test_the_prior_helps_against_noise() -> None:
    # The fourth image's gradient is about as small as the noise.
    batch = cases.mnist(3)
    observation = observe(cases.lenet(), batch, "gaussian:0.01")
    errors = {
        kind: rmse(BayesOptimal(steps=1000, prior=kind).run(observation, generator()).inputs, batch.inputs)
        for kind in ("tv", "range")
    }
    assert bool((errors["tv"] < errors["range"]).all())
    assert float(errors["tv"].max()) < 0.05
