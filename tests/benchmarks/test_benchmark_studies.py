"""The benchmarks of initialization and training run end to end, on a few digits in the place of MNIST's."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
import torch.nn.functional as F

from benchmarks import initialization, training_risk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of files named and shaped like MNIST's."""
    folder = tmp_path_factory.mktemp("images")
    digits = cases.digits(128)
    images = F.interpolate(digits.inputs * 255, size=(28, 28), mode="bilinear")[:, 0].byte().numpy()
    for name in ("mnist_train.npz", "mnist_test.npz"):
        np.savez(folder / name, images=images, labels=digits.targets.byte().numpy())
    return folder


def test_initialization_quick(capsys, tmp_path, folder) -> None:
    initialization.main(["mnist", "--data", str(folder), "--quick", "--json", str(tmp_path / "found.json")])
    assert "told apart from the best" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert {row["initialization"] for row in table["rows"]} == {"uniform", "normal", "checkpoint"}
    with pytest.raises(SystemExit):
        initialization.main(["svhn", "--data", str(folder)])


@pytest.mark.slow
def test_training_risk_quick(capsys, tmp_path, folder) -> None:
    arguments = ["lenet", "--data", str(folder), "--scratch", str(tmp_path), "--quick"]
    training_risk.main([*arguments, "--json", str(tmp_path / "found.json")])
    assert "test accuracy" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert [row["epochs"] for row in table["rows"]] == [0, 1]
    with pytest.raises(SystemExit):
        training_risk.main(["vgg", *arguments[1:]])
