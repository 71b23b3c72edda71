"""Each step of a release on its own."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.release_step import StepContract, vectors

from riskaudit.release import STEPS, Clip, GaussianNoise, Gradient, LaplaceNoise, Mask, Prune, Step

CPU = torch.device("cpu")


class TestGradient(StepContract):
    @pytest.fixture
    def step(self) -> Step:
        return Gradient()


class TestClip(StepContract):
    arguments = ":2.5"

    @pytest.fixture
    def step(self) -> Step:
        return Clip(2.5)


class TestPrune(StepContract):
    arguments = ":0.3"

    @pytest.fixture
    def step(self) -> Step:
        return Prune(0.3)


class TestMask(StepContract):
    arguments = ":0.3:5"

    @pytest.fixture
    def step(self) -> Step:
        return Mask(0.3, 5)


class TestGaussianNoise(StepContract):
    arguments = ":0.1"

    @pytest.fixture
    def step(self) -> Step:
        return GaussianNoise(0.1)


class TestLaplaceNoise(StepContract):
    arguments = ":0.1"

    @pytest.fixture
    def step(self) -> Step:
        return LaplaceNoise(0.1)


def test_every_step_has_a_contract() -> None:
    assert set(STEPS.values()) == {Gradient, Clip, Prune, Mask, GaussianNoise, LaplaceNoise}


@pytest.mark.parametrize("bound", [0.5, 2.0, 100.0, 1e-200, 1e200])
def test_clip_scales_down_and_never_up(bound: float) -> None:
    for vector in vectors(4):
        clipped = Clip(bound).bind(40, torch.float64, CPU)(vector)
        expected = min(1.0, bound / float(vector.norm())) * vector
        torch.testing.assert_close(clipped, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("ratio", "removed"), [(0.0, 0), (0.1, 4), (0.5, 20), (0.51, 20), (0.99, 40)])
def test_prune_removes_exactly_the_smallest(ratio: float, removed: int) -> None:
    for vector in vectors(4):
        pruned = Prune(ratio).bind(40, torch.float64, CPU)(vector)
        gone = pruned == 0
        assert int(gone.sum()) == removed
        assert torch.equal(pruned[~gone], vector[~gone])
        if 0 < removed < 40:
            assert vector[gone].abs().max() < vector[~gone].abs().min()


def test_prune_keeps_the_count_among_equals() -> None:
    pruned = Prune(0.25).bind(8, torch.float64, CPU)(torch.ones(8, dtype=torch.float64))
    assert int((pruned != 0).sum()) == 6


@pytest.mark.parametrize(("ratio", "removed"), [(0.0, 0), (0.1, 4), (0.5, 20), (0.99, 40)])
def test_mask_removes_the_same_entries_for_all(ratio: float, removed: int) -> None:
    apply = Mask(ratio, 3).bind(40, torch.float64, CPU)
    gone = [apply(vector) == 0 for vector in vectors(3)]
    assert int(gone[0].sum()) == removed
    assert torch.equal(gone[0], gone[1])
    assert torch.equal(gone[0], gone[2])
    assert torch.equal(apply(vectors(1)[0])[~gone[0]], vectors(1)[0][~gone[0]])


def test_mask_depends_on_its_seed_alone() -> None:
    ones = torch.ones(400, dtype=torch.float64)
    torch.manual_seed(1)
    first = Mask(0.5, 0).bind(400, torch.float64, CPU)(ones)
    torch.manual_seed(2)
    assert torch.equal(first, Mask(0.5, 0).bind(400, torch.float64, CPU)(ones))
    assert not torch.equal(first, Mask(0.5, 1).bind(400, torch.float64, CPU)(ones))


def test_standard_deviations() -> None:
    assert GaussianNoise(0.2).noise.std == GaussianNoise(0.2).noise.fisher_std == 0.2
    laplace = LaplaceNoise(0.2).noise
    assert laplace.std == pytest.approx(0.2 * math.sqrt(2))
    # Fisher information of a location parameter under Laplace(b) is 1 / b^2.
    assert laplace.fisher_std == 0.2
