"""Targets that carry their inputs: nothing is claimed of such samples. Other targets get a note."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import riskaudit
from riskaudit.audit.targets import CARRIED, are_labels, carrying_targets, target_notes
from riskaudit.errors import SamplesError


def images(count: int = 20, channels: int = 1, size: int = 24, seed: int = 0) -> Tensor:
    """Smooth pictures in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, size // 4, size // 4, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear").clamp(0, 1)


def rows(count: int = 40, size: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed))


def noise(like: Tensor, std: float, seed: int = 9) -> Tensor:
    return std * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


GREY, COLOUR, ROWS, WALK = images(), images(channels=3), rows(), rows(40, 40).sub(0.5).cumsum(1)
ORDER = torch.randperm(24 * 24, generator=torch.Generator().manual_seed(1))
SAME: dict[str, tuple[Tensor, Tensor]] = {
    "autoencoder": (GREY, GREY),
    "flattened": (GREY, GREY.flatten(1)),
    "negative, stretched": (COLOUR, 3 - 2 * COLOUR),
    "channels last": (COLOUR, COLOUR.movedim(1, -1)),
    "denoising": (GREY + noise(GREY, 0.3), GREY),
    "denoising in colour": (COLOUR + noise(COLOUR, 0.4), COLOUR),
    "noisy target": (GREY, GREY + noise(GREY, 0.1)),
    "super-resolution": (F.avg_pool2d(COLOUR, 2), COLOUR),
    "super-resolution, flat": (F.avg_pool2d(GREY, 2), GREY.flatten(1)),
    "thumbnail": (GREY, F.avg_pool2d(GREY, 2)),
    "odd size": (GREY, F.interpolate(GREY, size=(17, 19), mode="bilinear")),
    "inpainting": (GREY * (rows(20, 576) < 0.4).reshape(GREY.shape), GREY),
    "outpainting": (GREY[:, :, 4:-4, 4:-4], GREY),
    "middle": (GREY, GREY[:, :, 2:-2, 2:-2]),
    "from grey to colour": (COLOUR.mean(1, keepdim=True), COLOUR),
    "one of two pictures": (GREY, torch.cat([images(seed=5), GREY], 1)),
    "binarised": (GREY, (GREY.mean() < GREY).float()),
    "gamma": (GREY, GREY.square()),
    "longer row": (ROWS, torch.cat([ROWS, rows(40, 5, 3)], 1)),
    "interleaved": (ROWS, torch.stack([rows(40, 12, 3), ROWS], 2)),
    "row with noise": (ROWS, ROWS + noise(ROWS, 0.05)),
    "linear map": (ROWS, ROWS @ noise(torch.zeros(12, 12), 1.0)),
    "wider linear map": (ROWS, ROWS @ noise(torch.zeros(12, 30), 1.0)),
    "shuffled pixels": (images(60), images(60).flatten(1)[:, ORDER]),
    "whole series": (WALK[:, :24], WALK),
    "imputation": (ROWS * (rows(40, 12, 4) < 0.5), ROWS),
}
OTHER: dict[str, tuple[Tensor, Tensor]] = {
    "another's image": (COLOUR, COLOUR.roll(1, 0)),
    "another's image, larger": (GREY, F.interpolate(GREY.roll(1, 0), scale_factor=2.0, mode="bilinear")),
    "another's image, smaller": (GREY, F.avg_pool2d(GREY.roll(1, 0), 2)),
    "another's row": (ROWS, ROWS.roll(1, 0)),
    "another's longer row": (ROWS, torch.cat([ROWS, rows(40, 5, 3)], 1).roll(1, 0)),
    "another's series": (WALK[:, :20], WALK.roll(1, 0)[:, 20:]),
    "unrelated numbers": (GREY, rows(20, 10)),
    "one number": (ROWS, ROWS @ noise(torch.zeros(12, 1), 1.0)),
    "two numbers, no axis": (ROWS, ROWS.sum(1)),
    "two values of a row": (ROWS, ROWS[:, :2]),
    "edges": (GREY, F.pad(GREY.diff(dim=-1), (0, 1))),
    "constant": (GREY, torch.ones_like(GREY)),
    "constant inputs": (torch.ones_like(GREY), GREY),
    "blank": (torch.zeros_like(GREY), torch.zeros_like(GREY)),
}


@pytest.mark.parametrize("name", SAME)
def test_targets_that_carry_the_input(name: str) -> None:
    assert all(carrying_targets(*SAME[name]))


@pytest.mark.parametrize("name", OTHER)
def test_targets_that_do_not(name: str) -> None:
    assert not any(carrying_targets(*OTHER[name]))


@pytest.mark.parametrize(
    "name", ["autoencoder", "flattened", "denoising", "super-resolution", "inpainting", "longer row", "whole series"]
)
def test_a_sample_alone_is_enough(name: str) -> None:
    inputs, targets = SAME[name]
    alone = [carrying_targets(inputs[i : i + 1], targets[i : i + 1])[0] for i in range(16)]
    assert sum(alone) >= 15


@settings(max_examples=40, deadline=None)
@given(
    factor=st.floats(0.01, 100) | st.floats(-100, -0.01), offset=st.floats(-100, 100), seed=st.integers(0, 1000),
    length=st.integers(12, 60), before=st.integers(0, 9), after=st.integers(0, 9),
)  # fmt: skip
def test_an_affine_map_anywhere_in_the_target(factor, offset, seed, length, before, after) -> None:
    inputs = rows(3, length, seed)
    parts = [rows(3, before, seed + 1), offset + factor * inputs, rows(3, after, seed + 2)]
    assert all(carrying_targets(inputs, torch.cat(parts, 1)))
    assert not any(carrying_targets(inputs, torch.cat([parts[0], parts[1].roll(1, 0), parts[2]], 1)))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("walk", [False, True])
def test_unrelated_rows_are_rarely_taken_for_one_another(walk) -> None:
    """By one linear map over samples about one of a thousand batches of 24 agrees by chance; alone hardly any does."""
    alarms = 0
    for seed in range(300):
        inputs, targets = rows(24, 3 + 7 * seed % 62, seed), rows(24, 3 + 11 * seed % 62, seed + 1)
        if walk:
            inputs, targets = inputs.sub(0.5).cumsum(1), targets.sub(0.5).cumsum(1)
        alarms += any(carrying_targets(inputs, targets))
        assert not any(carrying_targets(inputs[:12], targets[:12]))
    assert alarms <= 2


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (torch.tensor([0, 3, 1]), True),
        (torch.tensor([[0], [3], [1]]), True),
        (torch.tensor([0.0, 1.0, 1.0]), True),
        (torch.eye(3), True),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), False),
        (torch.tensor([0.5, 1.0]), False),
        (torch.rand(3, 4), False),
        (torch.zeros(3, 4, 4, dtype=torch.long), False),
        (torch.zeros(3, 4, dtype=torch.long), False),
    ],
)
def test_what_labels_are(targets: Tensor, labels: bool) -> None:
    assert are_labels(targets) == labels
    assert len(target_notes(targets)) == (not labels)


def _audit(inputs: Tensor, targets: Tensor, loss: str = "mse", **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    outputs = targets[0].numel() if loss == "mse" else 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 4), nn.Tanh(), nn.Linear(4, outputs)).eval()
    samples = riskaudit.Samples.from_tensors(inputs, targets)
    return riskaudit.audit(model, samples, release="gaussian:0.5", loss=loss, **options)


def test_an_autoencoder_is_not_audited() -> None:
    with pytest.raises(SamplesError, match=r"none of the 40 samples .*target carries its input.*treat"):
        _audit(ROWS, ROWS)


def test_samples_whose_target_carries_the_input_are_not_assessed() -> None:
    targets = rows(40, 12, 8)
    targets[:3] = ROWS[:3]
    whole = _audit(ROWS, targets)
    assert [row.verdict for row in whole.samples[:3]] == ["not_assessed"] * 3
    assert [row.reason for row in whole.samples[:3]] == [CARRIED] * 3
    assert all(row.verdict != "not_assessed" for row in whole.samples[3:])
    assert any("known to the attacker" in warning for warning in whole.warnings)
    assert riskaudit.Policy(max_revealed=1.0).decide(whole).decision == "block"
    # The same whatever shares a batch.
    assert [row.verdict for row in _audit(ROWS, targets, batch_size=7).samples] == [
        row.verdict for row in whole.samples
    ]


def test_class_numbers_stay_as_they_are() -> None:
    result = _audit(ROWS, torch.arange(40) % 3, "cross-entropy")
    assert all(row.verdict != "not_assessed" for row in result.samples)
    assert not any("targets" in warning for warning in result.warnings)


def test_masks_get_a_note() -> None:
    inputs, masks = images(4, size=8), torch.randint(0, 3, (4, 8, 8), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    samples = riskaudit.Samples.from_tensors(inputs, masks)
    result = riskaudit.audit(nn.Conv2d(1, 3, 3, padding=1), samples, release="gaussian:1.0")
    assert any("known to the attacker" in warning for warning in result.warnings)
    assert all(row.status != "failed" for row in result.samples)
