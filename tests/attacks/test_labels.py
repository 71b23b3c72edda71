"""Labels from gradients: one sample, and batches with repeated labels; untrained and trained weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from riskaudit.attacks import AttackNotApplicable, label_counts, recover_batch_labels, recover_labels, with_labels
from riskaudit.attacks.labels import OutputLayer, rounded_counts
from riskaudit.inputs.losses import LOSSES
from riskaudit.inputs.models import Normalized
from riskaudit.release import Batch, PerSampleRelease, Release


def headed(features: nn.Module, width: int, classes: int = 10, *, bias: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), features, nn.Linear(width, classes, bias=bias)).double()


@lru_cache
def trained(steps: int = 150) -> nn.Module:
    """An mlp that knows most of the images it is asked about."""
    model, batch, rng = cases.mlp((64, 32, 10)), cases.digits(200), generator()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        picked = torch.randint(len(batch), (32,), generator=rng)
        optimiser.zero_grad()
        F.cross_entropy(model(batch.inputs[picked]), batch.targets[picked]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lambda: cases.lenet(8),
    "mlp": lambda: cases.mlp((64, 24, 10)),
    "trained": trained,
    "normalised": lambda: Normalized(cases.mlp((64, 24, 10)), [0.1307], [0.3081]),
    "without bias": lambda: headed(nn.ReLU(), 24, bias=False),
    "features of both signs": lambda: headed(nn.Tanh(), 24),
    "features of both signs, without bias": lambda: headed(nn.Tanh(), 24, bias=False),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("spec", ["gradient", "clip:0.1", "prune:0.7", "mask:0.7", "clip:1,gaussian:1e-3"])
@pytest.mark.parametrize("name", MODELS)
def test_label_of_one_sample(name: str, spec: str) -> None:
    batch = cases.digits(20) if name == "trained" else cases.mnist(20, 8)
    model = MODELS[name]()
    if name == "trained" and "gaussian" in spec:
        # The gradient of a sample that the model is sure of is far below the noise.
        unsure = F.cross_entropy(model(batch.inputs), batch.targets, reduction="none").detach() > 0.1
        batch = batch.select(torch.nonzero(unsure).flatten().tolist())
    observation = observe(model, batch, spec, known=False)
    assert recover_labels(observation).tolist() == batch.targets.tolist()
    assert with_labels(observation).known_targets.dtype == torch.int64


@pytest.mark.parametrize("bias", [True, False])
def test_two_classes(bias: bool) -> None:
    batch = cases.mnist(12, 8)
    batch = Batch(batch.inputs, batch.targets % 2)
    observation = observe(headed(nn.ReLU(), 16, 2, bias=bias), batch, known=False)
    assert recover_labels(observation).tolist() == batch.targets.tolist()


def test_known_labels_are_kept() -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8))
    assert with_labels(observation) is observation


def batch_of(labels: list[int], model: nn.Module) -> tuple[Release, Tensor]:
    """The mean gradient of digits with these labels."""
    pool = cases.digits(200)
    places = [np.flatnonzero(pool.targets.numpy() == label) for label in labels]
    batch = pool.select([int(where[position % len(where)]) for position, where in enumerate(places)])
    assert batch.targets.tolist() == labels
    release = PerSampleRelease(model, F.cross_entropy)
    return release, release.mean(batch).mean(0)


def dummies() -> Tensor:
    drawn = torch.randn(256, 1, 8, 8, generator=generator(4), dtype=torch.float64)
    return cases.PRIOR.mean + cases.PRIOR.std * drawn


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=24))
def test_labels_of_a_batch_with_repetitions(labels: list[int]) -> None:
    release, gradient = batch_of(labels, cases.lenet(8))
    assert recover_batch_labels(release, gradient, len(labels), dummies()).tolist() == sorted(labels)


@pytest.mark.parametrize("seed", range(5))
def test_counts_with_little_training(seed: int) -> None:
    labels = torch.randint(10, (16,), generator=generator(seed)).tolist()
    release, gradient = batch_of(labels, trained(5))
    # Dummies like the data: the model's outputs on noise are those of no digit.
    counts = label_counts(release, gradient, 16, cases.digits(200).inputs)
    wrong = (counts - torch.bincount(torch.tensor(labels), minlength=10)).abs().sum() / 2
    assert int(wrong) <= 1


def test_counts_from_the_weight_alone() -> None:
    labels = [0, 0, 0, 7, 7, 2]
    release, gradient = batch_of(labels, headed(nn.Sigmoid(), 24, bias=False))
    assert recover_batch_labels(release, gradient, 6, dummies()).tolist() == sorted(labels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-3, 30), min_size=1, max_size=12), st.integers(0, 40))
def test_rounded_counts(estimates: list[float], total: int) -> None:
    counts = rounded_counts(torch.tensor(estimates, dtype=torch.float64), total)
    assert int(counts.sum()) == total
    assert int(counts.min()) >= 0


def test_rounding_by_the_largest_remainder() -> None:
    assert rounded_counts(torch.tensor([1.4, 2.3, -0.2, 0.3]), 4).tolist() == [2, 2, 0, 0]
    assert rounded_counts(torch.tensor([float("nan"), 0.0]), 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("model", "loss", "why"),
    [
        (cases.mlp((64, 24, 10)), LOSSES["mse"].function, "cross-entropy"),
        (cases.mlp((64, 24, 10)), lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1), "cross-entropy"),
        (nn.Sequential(cases.mlp((64, 24, 10)), nn.LogSoftmax(-1)), F.cross_entropy, "used once"),
        (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()).double(), F.cross_entropy, "used once"),
    ],
    ids=["other loss", "smoothed labels", "not the last layer", "no fully connected layer"],
)
def test_not_applicable(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], why: str) -> None:
    with pytest.raises(AttackNotApplicable, match=why):
        OutputLayer(PerSampleRelease(model, loss), (1, 8, 8))


def test_a_frozen_last_layer_is_not_released() -> None:
    model = cases.mlp((64, 24, 10))
    model.layers[-1].requires_grad_(False)
    with pytest.raises(AttackNotApplicable, match=r"layers\.2"):
        OutputLayer(PerSampleRelease(model, F.cross_entropy), (1, 8, 8))


@pytest.mark.parametrize("loss", [F.cross_entropy, LOSSES["cross-entropy"]], ids=["torch", "registered"])
def test_cross_entropy_is_recognised_by_its_values(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    layer = OutputLayer(PerSampleRelease(cases.mlp((64, 24, 10)), loss), (1, 8, 8))
    assert (layer.name, layer.num_classes) == ("layers.2", 10)
