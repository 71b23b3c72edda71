from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from riskaudit.errors import CheckpointError
from riskaudit.inputs import Checkpoint, load_checkpoint
from riskaudit.inputs.architectures.convolutional import LeNet


@pytest.mark.parametrize(
    ("mean", "std"), [([0.1], [0.3]), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ([0.5], [0.1, 0.2, 0.3])]
)
def test_normalization_inside(tmp_path: Path, mean, std) -> None:
    model = LeNet(channels=3).eval()
    torch.save(model.state_dict(), tmp_path / "n.pt")
    checkpoint = load_checkpoint(tmp_path / "n.pt", mean=mean, std=std)
    x = torch.rand(2, 3, 28, 28)
    expected = model((x - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1))
    torch.testing.assert_close(checkpoint.model(x), expected)
    assert (
        len(checkpoint.normalization_mean or ()) == len(checkpoint.normalization_std or ()) == max(len(mean), len(std))
    )
    assert checkpoint.num_parameters == sum(p.numel() for p in model.parameters())
    assert not checkpoint.model.training
    assert checkpoint.model.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ([0.1], None, "without `std`"),
        (None, [0.1], "without `mean`"),
        ([0.1], [0.0], "positive"),
        ([0.1], [-1.0], "positive"),
        ([float("nan")], [1.0], "finite"),
        ([], [1.0], "finite"),
        ([0.1, 0.2], [1.0], "one value or 1"),
    ],
)
def test_normalization_refused(lenet_file: Path, refused, mean, std, words: str) -> None:
    assert words in refused(CheckpointError, load_checkpoint, lenet_file, mean=mean, std=std)


# Modules in memory


def test_from_model_copies() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5), nn.Dropout()).train()
    checkpoint = Checkpoint.from_model(model, name="mine")
    assert model.training
    assert not checkpoint.model.training
    assert checkpoint.sha256 is None
    assert (checkpoint.name, checkpoint.architecture) == ("mine", "Sequential")
    assert (checkpoint.input_channels, checkpoint.num_classes) == (2, 5)
    assert any("batch-norm layers 1 " in note for note in checkpoint.notes)
    assert any("dropout layers 4 " in note for note in checkpoint.notes)
    with torch.no_grad():
        model[0].weight.zero_()
    assert checkpoint.model[0].weight.abs().sum() > 0
    assert Checkpoint.from_model(model.eval()).notes == ()


def test_from_model_refuses(refused) -> None:
    broken = nn.Linear(2, 2)
    with torch.no_grad():
        broken.bias[0] = float("nan")
    assert "bias" in refused(CheckpointError, Checkpoint.from_model, broken)
    assert "no floating-point parameters" in refused(CheckpointError, Checkpoint.from_model, nn.ReLU())
    assert "torch.nn.Module" in refused(CheckpointError, Checkpoint.from_model, lambda x: x)


def test_untracked_batch_norm_is_noted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    assert any("keep no statistics" in note for note in Checkpoint.from_model(model).notes)


def test_in_place_activations_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    assert Checkpoint.from_model(model).model[1].inplace is False
    assert model[1].inplace is True


def test_channels_of_a_grouped_convolution() -> None:
    assert Checkpoint.from_model(nn.Conv2d(4, 8, 3, groups=4)).input_channels == 4


def test_half_precision_module_is_upcast() -> None:
    checkpoint = Checkpoint.from_model(nn.Linear(2, 2).half())
    assert next(checkpoint.model.parameters()).dtype == torch.float32
