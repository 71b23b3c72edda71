"""The benchmarks of initialization and training run end to end on a few real images."""

from __future__ import annotations

import json

import pytest
from cases import DATA

from benchmarks import initialization, training_risk

FILES = ("mnist_train.npz", "mnist_test.npz")


@pytest.fixture(autouse=True)
def _real_images() -> None:
    if not all((DATA / name).is_file() for name in FILES):
        pytest.skip(f"real images are not here: {DATA} (RISKAUDIT_DATA names their folder)")


def test_initialization_quick(capsys, tmp_path) -> None:
    initialization.main(["mnist", "--data", str(DATA), "--quick", "--json", str(tmp_path / "found.json")])
    assert "told apart from the best" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert {row["initialization"] for row in table["rows"]} == {"uniform", "normal", "checkpoint"}
    with pytest.raises(SystemExit):
        initialization.main(["svhn", "--data", str(DATA)])


def test_training_risk_quick(capsys, tmp_path) -> None:
    arguments = ["lenet", "--data", str(DATA), "--scratch", str(tmp_path), "--quick"]
    training_risk.main([*arguments, "--json", str(tmp_path / "found.json")])
    assert "test accuracy" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert [row["epochs"] for row in table["rows"]] == [0, 1]
    with pytest.raises(SystemExit):
        training_risk.main(["vgg", *arguments[1:]])
