"""Priors that the data contradict are refused, in audits and by the guard; real data under fitted priors pass."""

from __future__ import annotations

import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network
from torch import Tensor

import riskaudit
from riskaudit.errors import PriorError
from riskaudit.guard import Policy
from riskaudit.priors import ClassPrior, GaussianPrior, IsotropicPrior, Prior, fit_prior
from riskaudit.priors.fitting import odd_samples, tight_note

D, SHAPE = 64, (1, 8, 8)
INPUTS, TARGETS = images(12)


def gaussian(mean: Tensor, variances: Tensor, remainder: float, components: Tensor | None = None) -> GaussianPrior:
    found = torch.eye(D, len(variances), dtype=torch.float64) if components is None else components
    return GaussianPrior(mean.double().flatten(), found, variances.double(), remainder, SHAPE)


def _centre() -> Tensor:
    return INPUTS.double().mean(0).flatten()


def contradicted() -> dict[str, Prior]:
    tight_axis = torch.full((D - 1,), 0.09)
    return {
        "tiny std": IsotropicPrior(0.5, 1e-6),
        "wrong mean": IsotropicPrior(30.0, 0.3),
        "tiny remainder": gaussian(_centre(), torch.full((4,), 0.09), 1e-12),
        "one tight coordinate": gaussian(_centre(), tight_axis, 1e-8),
        "tight components": gaussian(_centre(), torch.full((40,), 1e-7), 1e-9),
        "of [0, 1], for 0 to 255": IsotropicPrior(0.5, 0.3 / 255),
        "one tight class": ClassPrior(
            gaussian(_centre(), torch.zeros(0), 0.09), {2: gaussian(_centre(), torch.zeros(0), 1e-10)}
        ),
    }


@pytest.mark.parametrize("name", contradicted())
def test_contradicted_priors_are_refused_and_withheld(name) -> None:
    prior = contradicted()[name]
    with pytest.raises(PriorError, match="contradict the prior"):
        odd_samples(prior, INPUTS, TARGETS, "give another")
    model, batch = network(), (INPUTS[:6], TARGETS[:6])
    guard = guard_of(model, Policy(max_revealed=0.05), prior=prior, prior_std=None)
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert decision.action == "block"
    assert "contradict the prior" in decision.reasons[0]


def test_audits_refuse_a_prior_that_knows_everything() -> None:
    samples = riskaudit.Samples.from_tensors(INPUTS, TARGETS)
    with pytest.raises(PriorError, match=r"contradict the prior.*`prior_std`"):
        riskaudit.audit(network(), samples, release="gaussian:0.01", prior_std=1e-6)


def test_a_single_odd_sample_is_named() -> None:
    inputs = INPUTS.clone()
    inputs[3] += 1.5
    samples = riskaudit.Samples.from_tensors(inputs, TARGETS)
    result = riskaudit.audit(network(), samples, release="gaussian:0.01", prior_mean=0.5, prior_std=0.3)
    assert any("next to impossible" in one and samples.ids[3] in one for one in result.warnings)


@pytest.mark.parametrize("kind", ["data", "class"])
def test_images_under_a_prior_of_others_pass(kind) -> None:
    others, own = images(200, seed=5), images(40, seed=6)
    prior = fit_prior(riskaudit.Samples.from_tensors(*others), kind)
    assert odd_samples(prior, *own, "give another") == []
    assert odd_samples(IsotropicPrior(0.0, 0.3), *own, "give another") == []


def test_a_prior_much_tighter_than_the_data_is_told() -> None:
    """A third of the data's spread makes less of them seem revealed, long before it is impossible."""
    for std, told in ((0.3, False), (float(INPUTS.std()) / 3, True)):
        prior = IsotropicPrior(0.0, std)
        assert bool(tight_note(prior, INPUTS, TARGETS)) == told
        # A wrong mean alone is no tightness.
        assert bool(tight_note(IsotropicPrior(-0.7, std), INPUTS, TARGETS)) == told
    model, batch = network(), (INPUTS[:6], TARGETS[:6])
    tight = IsotropicPrior(float(INPUTS.mean()), float(INPUTS.std()) / 3)
    guard = guard_of(model, Policy(max_revealed=0.99), prior=tight, prior_std=None)
    assert any("too tight" in one for one in guard.review(batch, gradient(model, batch, NOISE)).warnings)
