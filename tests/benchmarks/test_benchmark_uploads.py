"""The benchmark of attacks on uploads runs end to end, and goes on where it stopped: digits in the place of MNIST."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
import torch.nn.functional as F

from benchmarks import uploads


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Options that name a folder of files shaped like MNIST's."""
    digits = cases.digits(128)
    images = F.interpolate(digits.inputs * 255, size=(28, 28), mode="bilinear")[:, 0].byte().numpy()
    for name in ("mnist_train.npz", "mnist_test.npz"):
        np.savez(tmp_path / name, images=images, labels=digits.targets.byte().numpy())
    rows = str(tmp_path / "rows.jsonl")
    return ["--data", str(tmp_path), "--scratch", str(tmp_path), "--rows", rows, "--quick"]


def test_strength_quick(capsys, arguments, tmp_path) -> None:
    uploads.main(["mnist-50-step", *arguments])
    assert "PSNR in dB" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["attack"] for row in rows] == ["gauss-newton", "dlg", "inverting-gradients"]
    assert all(len(row["psnr"]) == 2 for row in rows)
    uploads.main(["mnist-50-step", *arguments])
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_predictions_quick(capsys, arguments, tmp_path) -> None:
    uploads.main(["mean-4", *arguments, "--json", str(tmp_path / "found.json")])
    assert "gauss-newton / map_i2f" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert table["rows"][0]["n"] == 2
    with pytest.raises(SystemExit):
        uploads.main(["mean-3", *arguments])
