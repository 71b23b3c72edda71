"""The benchmarks of initialization, training and defences run end to end, on a few digits in the place of MNIST's."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
import torch.nn.functional as F

from benchmarks import defenses, early_steps, initialization, training_risk


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


@pytest.mark.slow
def test_defenses_quick_goes_on_where_it_was(capsys, tmp_path, folder) -> None:
    arguments = ["--data", str(folder), "--scratch", str(tmp_path / "run"), "--quick", "--defenses", "gaussian:0.1"]
    defenses.main([*arguments, "--json", str(tmp_path / "found.json")])
    assert "final loss" in capsys.readouterr().out
    table, equal = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert [row["defense"] for row in table["rows"]] == ["gradient", "gaussian:0.1"]
    assert equal["rows"] == []
    log = tmp_path / "run" / "trials.jsonl"
    before = log.read_bytes()
    defenses.main(arguments)
    assert log.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adaptive"), [("precode", "analytic"), ("soteria", "layer-left-out")])
def test_early_steps_quick(capsys, tmp_path, folder, name, adaptive) -> None:
    early_steps.main([name, "--data", str(folder), "--quick", "--json", str(tmp_path / "found.json")])
    assert "PSNR" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert [row["step"] for row in table["rows"]] == [0, 1]
    assert all(row[adaptive] is not None for row in table["rows"])
    if name == "precode":
        assert all(row[adaptive] > 80 > row["inverting-gradients"] for row in table["rows"])
    with pytest.raises(SystemExit):
        early_steps.main(["mixup", "--data", str(folder)])
