"""The benchmark of LAVP in its own setting: what its rows say, and that its attacks go where they should."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
import torch.nn.functional as F

from benchmarks import lavp
from riskaudit.inputs import Samples


def test_signs_and_the_better_of_both() -> None:
    rng = np.random.default_rng(0)
    errors, noises = rng.normal(size=40) ** 2, rng.normal(size=(2, 40))
    good, contrary = ((sign * errors + 0.3 * noise).tolist() for sign, noise in zip((-1, 1), noises, strict=True))
    row = lavp.compared(good, contrary, errors.tolist(), "mse")
    assert row["lavp"].startswith("-")
    assert not row["lavp"].endswith("wrong sign")
    assert row["norm"].endswith(" wrong sign")
    assert row["reading"] == "not told apart"
    # Of a metric that is better when higher, the other way round.
    row = lavp.compared(contrary, good, errors.tolist(), "ssim")
    assert not row["lavp"].endswith("wrong sign")
    assert row["norm"].endswith(" wrong sign")
    assert "not told apart 1" in lavp.summary([row])
    assert "LAVP 0, norm 1" in lavp.summary([row])
    unrelated = rng.normal(size=40).tolist()
    assert lavp.compared(good, unrelated, errors.tolist(), "mse")["reading"] == "LAVP"
    assert lavp.compared(unrelated, good, errors.tolist(), "mse")["reading"] == "gradient norm"


@pytest.mark.parametrize("loss", lavp.LOSSES)
def test_a_local_start_comes_nearer_to_the_truth(loss: str) -> None:
    batch = cases.mnist(2, 8)
    samples = Samples(batch.inputs, batch.targets, ("a", "b"))
    model = cases.lenet(8).float()
    found = {steps: lavp.attacked(model, samples, loss, "local", steps) for steps in (0, 60)}
    errors = {steps: (inputs - batch.inputs).square().flatten(1).mean(1) for steps, inputs in found.items()}
    assert float((errors[0] / lavp.LOCAL_STD**2).mean()) == pytest.approx(1, abs=0.3)
    assert bool((errors[60] < 0.8 * errors[0]).all())


@pytest.mark.slow
def test_quick(capsys, tmp_path: Path) -> None:
    digits = cases.digits(8)
    for name, channels in (("mnist", 1), ("cifar10", 3)):
        side = lavp.SHAPES[name][-1]
        images = (
            F.interpolate(digits.inputs * 255, size=(side, side), mode="bilinear").byte().expand(-1, channels, -1, -1)
        )
        stored = np.tile(images.numpy(), (16, 1, 1, 1))
        stored = stored[:, 0] if channels == 1 else stored
        np.savez(tmp_path / f"{name}_test.npz", images=stored, labels=np.tile(digits.targets.byte().numpy(), 16))
    lavp.main(["lenet", "--data", str(tmp_path), "--quick", "--json", str(tmp_path / "found.json")])
    assert "ranks better" in capsys.readouterr().out
    tables = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert [len(table["rows"]) for table in tables] == [16, 8]
