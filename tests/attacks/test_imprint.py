"""Imprint layers: samples alone in a bin come back, mixtures are not passed on, and other models are told so."""

from __future__ import annotations

import cases
import pytest
import received_cases
import torch
from contracts.attack import generator, observe_uploads
from torch import Tensor, nn

from riskaudit.attacks import AttackNotApplicable, Imprint
from riskaudit.inputs.models import Normalized
from riskaudit.release import Batch


def bins(model: nn.Module, inputs: Tensor) -> Tensor:
    """The bin of every sample [n]: how many thresholds it exceeds."""
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    return (layer(inputs.flatten(1)) > 0).sum(1)


def errors(found: Tensor, truth: Tensor) -> Tensor:
    """Of every sample, the largest error of a pixel in the reconstruction next to it, [n]."""
    return (found.flatten(1)[None] - truth.flatten(1)[:, None]).abs().amax(-1).amin(1)


def occupied(count: int, units: int) -> tuple[nn.Module, Batch, Tensor]:
    """A network, digits, and which of them are alone in their bin."""
    model, batch = received_cases.imprint_mlp(64, units), cases.digits(count)
    bin_of = bins(model, batch.inputs)
    return model, batch, (bin_of[:, None] == bin_of).sum(1) == 1


@pytest.mark.parametrize("units", [40, 400])
def test_samples_alone_in_their_bin_come_back_and_no_others(units: int) -> None:
    model, batch, alone = occupied(12, units)
    assert int(alone.sum()) >= 3
    found = Imprint().run(observe_uploads(model, batch, "mean:12"), generator())
    assert float(errors(found.inputs, batch.inputs)[alone].max()) < 1e-10
    at_prior = (found.inputs == cases.PRIOR.mean).flatten(1).all(1)
    assert int(at_prior.sum()) == int((~alone).sum())
    assert found.status == ("converged" if bool(alone.all()) else "not_converged",)
    assert (found.status[0] == "converged") == (units == 400)
    assert found.restarts == 1


def test_a_bin_of_two_is_no_sample() -> None:
    batch = cases.digits(1)
    pair = torch.cat([batch.inputs, batch.inputs.flip(-1)])
    for label in (0, 1):
        twice = Batch(pair, torch.tensor([0, label]))
        found = Imprint().run(observe_uploads(received_cases.imprint_mlp(), twice, "mean:2"), generator())
        assert found.status == ("not_converged",)
        assert bool((found.inputs == cases.PRIOR.mean).all())
        assert float(found.objective) > 1e-6


def test_a_sample_below_all_thresholds_leaves_its_place_open() -> None:
    batch = Batch(torch.cat([0.0 * cases.digits(1).inputs, cases.digits(1).inputs]), torch.tensor([3, 0]))
    found = Imprint().run(observe_uploads(received_cases.imprint_mlp(), batch, "mean:2"), generator())
    assert found.status == ("not_converged",)
    assert bool((found.inputs[0] == cases.PRIOR.mean).all())
    assert float((found.inputs[1] - batch.inputs[1]).abs().max()) < 1e-10


def test_every_sample_stands_at_its_label() -> None:
    model, batch, alone = occupied(12, 400)
    assert bool(alone.all())
    found = Imprint().run(observe_uploads(model, batch, "mean:12"), generator())
    for place, label in enumerate(found.targets):
        same = batch.inputs[batch.targets == label]
        assert float((same - found.inputs[place]).abs().flatten(1).amax(1).min()) < 1e-10


def test_rows_of_any_length_behind_a_normalisation() -> None:
    model, batch, _ = occupied(4, 400)
    lengths = torch.linspace(0.5, 2, 400, dtype=torch.float64)
    with torch.no_grad():
        model[1].weight *= lengths[:, None]
        model[1].bias *= lengths
        model[3].weight *= lengths.flip(0)
    observation = observe_uploads(Normalized(model, [0.1], [0.5]), batch, "mean:4")
    found = Imprint().run(observation, generator())
    assert found.status == ("converged",)
    assert float(errors(found.inputs, batch.inputs).max()) < 1e-10


def test_small_noise_blurs_and_large_noise_hides() -> None:
    model, batch, _ = occupied(4, 64)
    small, large = (
        Imprint().run(observe_uploads(model, batch, f"mean:4,gaussian:{std}"), generator()) for std in ("1e-9", "1")
    )
    assert 1e-9 < float(errors(small.inputs, batch.inputs).max()) < 1e-4
    assert large.status == ("not_converged",)
    assert bool((large.inputs == cases.PRIOR.mean).all())


def not_alike() -> nn.Module:
    model = received_cases.imprint_mlp()
    with torch.no_grad():
        model[3].weight.normal_()
    return model


@pytest.mark.parametrize(
    ("model", "spec", "why"),
    [
        (cases.mlp((64, 24, 10)), "mean:2", "no imprint layer"),
        (cases.lenet(8), "mean:2", "no fully connected layer"),
        (not_alike(), "mean:2", "differently"),
        (received_cases.imprint_mlp(), "mean:2,prune:0.5", "prune:0.5"),
        (received_cases.imprint_mlp(), "local:epochs=1:batch=2:lr=0.1", "difference of weights"),
    ],
    ids=["honest", "convolutions", "units apart", "pruned", "local"],
)
def test_not_applicable(model: nn.Module, spec: str, why: str) -> None:
    with pytest.raises(AttackNotApplicable, match=why):
        Imprint().run(observe_uploads(model, cases.digits(2), spec), generator())
