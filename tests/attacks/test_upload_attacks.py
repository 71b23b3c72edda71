"""Attacks on uploads of several samples: reconstructions, classmates, labels, batch norms, groups that agree."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
from contracts.attack import generator, observe_uploads, rmse
from torch import Tensor, nn

from riskaudit.attacks import (
    Attack,
    AttackNotApplicable,
    BayesOptimal,
    DeepLeakage,
    GaussNewton,
    GradInversion,
    InvertingGradients,
    Local,
    Observation,
    recover_labels,
)
from riskaudit.attacks.optimise.batch_norms import BatchNormStatistics, batch_statistics
from riskaudit.attacks.optimise.consensus import GroupConsistency, agreed, register, same_order
from riskaudit.attacks.optimise.starts import draw_starts
from riskaudit.release import Batch, with_batch_statistics
from riskaudit.studies.attacking import matched_order

TRAINED = "local:epochs=1:batch=1:lr=0.1"


def matched_errors(attack: Attack, observation: Observation, batch: Batch) -> Tensor:
    found = attack.run(observation, generator(1))
    return rmse(found.inputs[matched_order(found.inputs, batch.inputs, observation.upload_size)], batch.inputs)


@pytest.mark.parametrize("spec", ["mean:2", TRAINED])
@pytest.mark.parametrize(
    ("attack", "limit"),
    [
        (DeepLeakage(steps=60), 0.05),
        pytest.param(GaussNewton(), 1e-5, marks=pytest.mark.slow),
        pytest.param(InvertingGradients(steps=400), 5e-3, marks=pytest.mark.slow),
        pytest.param(GradInversion(steps=400, restarts=2, matching_weight=1.0), 0.1, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.name if isinstance(value, Attack) else "",
)
def test_undefended_uploads_are_reconstructed(attack: Attack, limit: float, spec: str) -> None:
    batch = cases.digits(2)
    assert float(matched_errors(attack, observe_uploads(cases.lenet(8), batch, spec), batch).max()) < limit


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["mean:2", TRAINED])
def test_noise_is_met_by_a_prior(spec: str) -> None:
    batch = cases.digits(2)
    observation = observe_uploads(cases.lenet(8), batch, f"{spec},gaussian:0.001")
    blind = rmse(torch.full_like(batch.inputs, cases.PRIOR.mean), batch.inputs)
    assert bool((matched_errors(BayesOptimal(steps=400), observation, batch) < 0.4 * blind).all())
    observation = observe_uploads(cases.lenet(8), batch, f"{spec},gaussian:1e-5")
    assert float(matched_errors(Local(start=batch.inputs), observation, batch).max()) < 5e-3


def test_samples_of_one_class_begin_apart() -> None:
    batch = cases.digits(12).select([0, 10, 1, 2])
    observation = observe_uploads(cases.lenet(8), batch, "mean:2")
    starts = draw_starts("mean", observation, observation.bound_prior(), 1, generator()).reshape(4, 64)
    assert bool((starts[2:] == cases.PRIOR.mean).all())
    assert 0.05 < float((starts[0] - starts[1]).square().mean().sqrt()) < 0.2


@pytest.mark.slow
def test_the_second_order_attack_tells_samples_of_one_class_apart() -> None:
    batch = cases.digits(11).select([0, 10])
    assert float(matched_errors(GaussNewton(), observe_uploads(cases.lenet(8), batch, "mean:2"), batch).max()) < 1e-4


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("mean:6", 0),
        ("local:epochs=3:batch=2:lr=0.02", 0),
        ("local:epochs=3:batch=2:lr=0.1", 1),
        ("local:epochs=3:batch=2:lr=0.1:momentum=0.9:weight_decay=0.1", 2),
        ("local:epochs=2:batch=3:lr=0.02,secagg:2", 0),
    ],
)
def test_labels_of_an_upload(spec: str, wrong: int) -> None:
    batch = cases.digits(60).select([3, 13, 8, 1, 0, 10])
    found = recover_labels(observe_uploads(cases.lenet(8), batch, spec, known=False))
    counts, expected = (torch.bincount(labels, minlength=10) for labels in (found, batch.targets))
    assert int((counts - expected).abs().sum()) <= 2 * wrong
    assert found.tolist() == sorted(found.tolist())


@pytest.mark.parametrize(
    "spec", ["local:epochs=1:batch=2:lr=0.01:optimizer=adam", "mean:2,clip:0.1", "mean:2,prune:0.5"]
)
def test_labels_that_no_upload_shows(spec: str) -> None:
    with pytest.raises(AttackNotApplicable, match="labels"):
        recover_labels(observe_uploads(cases.lenet(8), cases.digits(2), spec, known=False))


def batch_norm_net() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 12),
        nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10),
    ).double().eval()  # fmt: skip


def test_statistics_are_those_of_each_clients_batch() -> None:
    batch, model = cases.digits(8), with_batch_statistics(batch_norm_net())
    for spec, size in (("mean:4", 4), ("mean:2,secagg:2", 2)):
        observation = observe_uploads(model, batch, spec)
        found = batch_statistics(observation.release, batch.inputs, size)
        for first in range(0, 8, size):
            part = batch.inputs[first : first + size]
            entering = model[0](part)
            inner = model[:5](part)
            for name, values, axes in (("1", entering, (0, 2, 3)), ("5", inner, (0,))):
                mean, variance = (each[first // size] for each in found[name])
                torch.testing.assert_close(mean, values.mean(axes).detach())
                torch.testing.assert_close(variance, values.var(axes, correction=0).detach())


def test_the_truth_has_the_statistics_that_were_sent_along() -> None:
    batch = cases.digits(4)
    observation = observe_uploads(with_batch_statistics(batch_norm_net()), batch, "mean:2")
    numbers = torch.arange(4)
    assert BatchNormStatistics().bind(observation, numbers)(batch.inputs).tolist() == [0] * 4
    sent = batch_statistics(observation.release, batch.inputs, 2)
    observation = replace(observation, layer_statistics=sent)
    penalty = BatchNormStatistics().bind(observation, numbers)
    assert float(penalty(batch.inputs).abs().max()) < 1e-12
    others = penalty(batch.inputs.flip(0))
    assert float(others.min()) > 0.1
    # Both samples of an upload have their upload's.
    assert others.tolist() == pytest.approx([float(others[0])] * 2 + [float(others[2])] * 2)
    swapped = observation.select([1, 0])
    flipped = batch.inputs[[2, 3, 0, 1]]
    assert float(BatchNormStatistics().bind(swapped, numbers)(flipped).abs().max()) < 1e-12


def test_a_group_of_guesses_with_statistics_of_the_batch() -> None:
    batch = cases.digits(2)
    observation = observe_uploads(with_batch_statistics(batch_norm_net()), batch, "mean:2")
    sent = batch_statistics(observation.release, batch.inputs, 2)
    found = GradInversion(steps=5, restarts=2).run(replace(observation, layer_statistics=sent), generator())
    assert found.inputs.shape == batch.inputs.shape
    assert found.status == ("not_converged",)


@pytest.mark.slow
def test_statistics_that_were_sent_along_are_met() -> None:
    batch = cases.digits(4)
    observation = observe_uploads(with_batch_statistics(batch_norm_net()), batch, "mean:4")
    sent = batch_statistics(observation.release, batch.inputs, 4)
    observation = replace(observation, layer_statistics=sent)
    penalty = BatchNormStatistics().bind(observation, torch.arange(4))
    without, met = (
        InvertingGradients(steps=200, batch_norm=weight).run(observation, generator()).inputs for weight in (0.0, 0.1)
    )
    assert float(penalty(met).mean()) < 0.6 * float(penalty(without).mean())


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-2, 1), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_registration_takes_a_shift_back(shift: tuple[int, int], channels: int) -> None:
    reference = torch.rand(2, channels, 8, 11, generator=generator(), dtype=torch.float64)
    shifted = torch.stack([reference[0].roll(shift, (-2, -1)), reference[1]])
    torch.testing.assert_close(register(shifted, reference), reference)


def test_registration_leaves_far_shifts_and_inputs_that_are_no_images() -> None:
    ramp = torch.rand(1, 1, 8, 8, generator=generator(), dtype=torch.float64)
    far = ramp.roll(4, -1)
    moved = register(far, ramp)
    assert not torch.allclose(moved, ramp)
    assert float((moved - ramp).square().sum()) <= float((far - ramp).square().sum())
    vectors = torch.rand(2, 6, generator=generator(), dtype=torch.float64)
    assert torch.equal(register(vectors, vectors.flip(0)), vectors)


def test_a_group_agrees_in_the_places_of_every_member() -> None:
    images = cases.digits(3).inputs
    classes = torch.tensor([0, 0, 1])
    swapped = images[[1, 0, 2]].roll(1, -1)
    assert same_order(swapped, images, classes).tolist() == [1, 0, 2]
    assert same_order(swapped, images, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    agreement = agreed(torch.stack([images, images[[1, 0, 2]]]), classes)
    torch.testing.assert_close(agreement[0], images)
    torch.testing.assert_close(agreement[1], images[[1, 0, 2]])


def test_a_group_agrees_on_an_image_whatever_its_shifts() -> None:
    image = cases.digits(1).inputs
    group = torch.stack([image, image.roll(1, -1), image.roll(-1, -2), image])
    torch.testing.assert_close(agreed(group, torch.tensor([0])), image.expand_as(group))
    observation = observe_uploads(cases.lenet(8), cases.digits(2), "mean:2").select([0, 0])
    guesses = cases.digits(2).inputs.repeat(2, 1, 1, 1)
    penalty = GroupConsistency().bind(observation, torch.tensor([0, 1, 0, 1]))
    assert penalty(guesses).tolist() == [0] * 4
    assert float(penalty(guesses * torch.tensor([1.0, 1, 0.5, 1])[:, None, None, None])[[0, 2]].min()) > 0
