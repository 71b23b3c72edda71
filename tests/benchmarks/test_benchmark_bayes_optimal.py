"""The experiments on what knowing the defence is worth run end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import bayes_optimal
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, PerSampleRelease


@pytest.mark.slow
def test_bayes_optimal_quick(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(bayes_optimal.FIRST + 2, 28, 28), dtype=np.uint8)
    for name in ("mnist_test", "mnist_train"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(len(images)) % 10)
    written, again = tmp_path / "bayes.json", ["--rows", str(tmp_path / "rows.jsonl")]
    bayes_optimal.main(["--quick", "--data", str(tmp_path), "--json", str(written), *again])
    printed = capsys.readouterr().out
    assert "mean distance (95 %)" in printed
    assert "bayes less the best rival (95 %)" in printed
    tables = json.loads(written.read_text())["tables"]
    # Three synthetic ones, before and after training, and the ball's.
    assert [len(table["rows"]) for table in tables] == [4, 4, 4, 4, 4, 5]
    for table in tables[:3]:
        assert table["rows"][0]["difference"] is None
        assert all(np.isfinite(row["scores"]).all() for row in table["rows"])
    assert [("told of the mask" in row) for row in tables[3]["rows"]] == [False, False, True, True]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 18 + 10
    assert {row["step"] for row in rows if "step" in row} == {0, 2}


def test_images_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bayes_optimal.main(["images"])
    assert "--data" in capsys.readouterr().err


def test_settings_are_chosen_one_after_the_other() -> None:
    release = PerSampleRelease(torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy, "gaussian:1")
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    case = bayes_optimal.Case.of(release, batch, IsotropicPrior(0.0, 1.0))
    tried: list[dict[str, object]] = []

    class Recorded(bayes_optimal.Contestant):
        def scores(self, case, settings, score):
            tried.append(dict(settings))
            return torch.tensor([-abs(float(settings["beta"]) - 3) - abs(float(settings["rate"]) - 0.1)])

    contestant = Recorded(bayes_optimal.BayesOptimal(), {"beta": (1.0, 3.0), "rate": (0.3, 0.1)})
    assert contestant.tuned(case, bayes_optimal.distance, largest=True) == {"beta": 3.0, "rate": 0.1}
    assert len(tried) == 4


def test_a_mask_is_taken_out_for_those_who_ignore_it() -> None:
    torch.manual_seed(0)
    release = PerSampleRelease(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, "mask:0.5:0,gaussian:0.1")
    batch = Batch(torch.randn(1, 3), torch.zeros(1, dtype=torch.int64))
    case = bayes_optimal.Case.of(release, batch, IsotropicPrior(0.0, 1.0))
    informed, ignorant = (bayes_optimal.Contestant(bayes_optimal.BayesOptimal(), {}, knows) for knows in (True, False))
    assert str(informed.assumed(release).spec) == "gradient,mask:0.5:0,gaussian:0.1"
    assert str(ignorant.assumed(release).spec) == "gradient,gaussian:0.1"
    torch.testing.assert_close(case.observation(ignorant.assumed(release)).released, case.released)
