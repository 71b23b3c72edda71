"""The attack that leaves a layer out, on what breaks others: Soteria (Balunovic et al., ICLR 2022, figure 2)."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe, rmse
from torch import nn

from riskaudit.attacks import AttackNotApplicable, InvertingGradients, LayerLeftOut
from riskaudit.attacks.left_out import best_without, observe_rest
from riskaudit.release import Batch, PerSampleRelease

STEPS = 200


def network() -> nn.Sequential:
    """Two convolutions before the largest linear layer, named 5; another one after it, 7."""
    first, second = nn.Conv2d(1, 12, 5, 2, padding=2), nn.Conv2d(12, 12, 5, 2, padding=2)
    layers = [first, nn.Sigmoid(), second, nn.ReLU(), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 10)]
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(*layers).double().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return model


def image() -> Batch:
    return cases.digits(2).select([1])


@pytest.mark.slow
def test_who_does_not_know_soteria_fails_and_who_leaves_its_layer_out_does_not() -> None:
    model, batch = network(), image()
    observation = observe(model, batch, "soteria:80")
    plain = replace(observation, jacobian=observation.jacobian.of(PerSampleRelease(model, F.cross_entropy)))
    naive = InvertingGradients(steps=STEPS, total_variation=4e-4).run(plain, generator())
    adapted = LayerLeftOut(steps=STEPS).run(observation, generator())
    assert float(rmse(naive.inputs, batch.inputs)) > 0.3
    assert float(rmse(adapted.inputs, batch.inputs)) < 0.02


def test_what_is_left_is_sent_as_it_is() -> None:
    batch = cases.digits(2)
    observation = observe(network(), batch, "soteria:80,gaussian:0.01,mask:0.2")
    rest = observe_rest(observation, ["5.weight"])
    assert rest.released.shape == (2, observation.released.shape[1] - 20 * 48)
    assert str(rest.release.spec) == "gradient,gaussian:0.01,mask:0.2:0,share:!5.weight"
    noise = rest.released - rest.release.mean(batch)
    assert 0.005 < float(noise[noise != 0].std()) < 0.02


def test_the_choice_with_the_least_objective_is_kept_for_every_upload() -> None:
    observation = observe(network(), cases.digits(3), "soteria:80")
    attack, candidates = InvertingGradients(steps=5, start="mean"), [["5.weight"], ["7.weight", "7.bias"]]
    drawn = generator()
    each = [attack.run(observe_rest(observation, names), drawn) for names in candidates]
    objectives = torch.stack([one.objective for one in each])
    both = best_without(attack, observation, candidates, generator())
    assert torch.equal(both.objective, objectives.amin(0))
    for upload, best in enumerate(objectives.argmin(0).tolist()):
        assert torch.equal(both.inputs[upload], each[best].inputs[upload])
    assert both.restarts == 2


@pytest.mark.parametrize(
    ("attack", "spec", "words"),
    [
        (LayerLeftOut(layer="0"), "gradient", "no linear layer whose weight is sent \\(5, 7 are\\)"),
        (LayerLeftOut(), "share:0.*", "no linear layer's weight is sent"),
        (LayerLeftOut(), "share:7.weight", "without 7.weight nothing is sent"),
    ],
)
def test_where_it_cannot_be_run_it_says_why(attack: LayerLeftOut, spec: str, words: str) -> None:
    with pytest.raises(AttackNotApplicable, match=words):
        attack.run(observe(network(), image(), spec), generator())
