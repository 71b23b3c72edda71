"""``verify``, ``calibrate`` and ``scan --calibration`` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scan_cases import CHECKPOINT, DATA, Outcome

from riskaudit.cli.app import run as run_command
from riskaudit.cli.verify import IN_TIME, foretold, without_empty
from riskaudit.engine import Journal
from riskaudit.errors import SettingsError
from riskaudit.files import MANIFEST
from riskaudit.results import Calibration
from riskaudit.studies.rows import Forecast
from riskaudit.studies.verify.record import VerifyStudy

VERIFY = ("verify", str(CHECKPOINT), "--data", str(DATA))
QUICK = ("--attack", "gauss-newton", "--attack-steps", "6", "--restarts", "1")
Command = Callable[..., Outcome]


def study_of(outcome: Outcome) -> VerifyStudy:
    return VerifyStudy.model_validate(outcome.document["studies"]["verify"])


@pytest.mark.slow
def test_verify_writes_everything_that_scan_writes_and_the_study(command: Command) -> None:
    done = command(*VERIFY, "--limit", "4", *QUICK, "--noise-std", "0.01", "--noise-std", "0", "--out", "out",
                   "--format", "json", "--format", "html", "--format", "csv")  # fmt: skip
    assert done.code == 0, done.err
    assert {path.name for path in done.folder.iterdir()} == {"audit.json", "audit.html", "samples.csv", MANIFEST}
    study = study_of(done)
    assert len(study.attacks) == 8
    assert {row.noise_std for row in study.attacks} == {0.01, 0.0}
    assert study.control.status in ("passed", "failed")
    assert "positive control" in done.out
    assert done.document["release"]["noise"]["std"] == 0.01
    assert "--noise-std 0.01 --noise-std 0.0" in done.document["command"]
    assert not list(done.folder.parent.glob("*.trials.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "batch_norm"),
    [
        ("mean:2", "running"),
        pytest.param("local:epochs=2:batch=1:lr=0.1", "running", marks=pytest.mark.slow),
        pytest.param("mean:1,secagg:2", "running", marks=pytest.mark.slow),
    ],
)
def test_uploads_of_several_samples_are_verified(command: Command, release: str, batch_norm: str) -> None:
    limit = "2" if release.startswith("local") else "4"
    upload = ("--limit", limit, "--release", release, "--batch-norm", batch_norm, "--noise-std", "0.01")
    done = command(*VERIFY, *upload, *QUICK, "--out", "out", "--format", "json", "--format", "html")
    assert done.code == 0, done.err
    study = study_of(done)
    assert len(study.attacks) == int(limit)
    assert not study.knowledge.rest_of_batch_known
    assert all(row.metrics["rmse"] is not None for row in study.attacks)
    assert {"map_i2f", "informed_revealed_fraction"} <= set(study.predictions[0].proxies)


def test_uploads_that_the_samples_do_not_fill_are_refused(command: Command) -> None:
    done = command(*VERIFY, "--limit", "3", *QUICK, "--noise-std", "0.01", "--release", "mean:2", "--out", "out")
    assert done.code == 2
    assert "uploads of 2" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.folder.exists()


@pytest.mark.slow
def test_how_long_it_will_take_is_said_unless_quiet(command: Command) -> None:
    words = (*VERIFY, "--limit", "2", *QUICK, "--noise-std", "0.01", "--format", "json")
    said = command(*words, "--out", "out")
    assert said.code == 0, said.err
    assert "will take about" in said.err
    foretold = study_of(said).foretold
    assert foretold is not None
    assert foretold.num_timed == 1
    quiet = command(*words, "--out", "other", "--quiet")
    assert (quiet.code, quiet.err, quiet.out) == (0, "", "")
    document = json.loads(Path("other/audit.json").read_text())
    assert document["studies"]["verify"]["foretold"] is None


@pytest.mark.slow
def test_budget_keeps_the_audit_and_resume_goes_on(command: Command) -> None:
    words = (*VERIFY, "--limit", "2", *QUICK, "--noise-std", "0.01", "--format", "json", "--format", "html")
    short = command(*words, "--budget", "0.001", "--out", "out")
    assert short.code == 0, short.err
    study = study_of(short)
    assert (study.complete, study.stopped_by) == (False, "budget")
    assert {row.status for row in study.attacks} == {"not_run"}
    assert "--resume goes on from out.trials.jsonl, which may be deleted" in short.err
    assert len(short.document["samples"]) == 2
    assert "Of these samples nothing is known" in (short.folder / "audit.html").read_text()
    log = short.folder.with_name("out.trials.jsonl")
    assert log.exists()
    whole = command(*words, "--out", "out", "--resume")
    assert whole.code == 0, whole.err
    assert study_of(whole).complete
    assert not log.exists()


def test_budget_of_a_calibration(command: Command) -> None:
    words = ("calibrate", str(CHECKPOINT), "--data", str(DATA), "--limit", "10", "--release", "gaussian:0.02", *QUICK,
             "--coverage", "0.8", "--out", "calibration.json")  # fmt: skip
    done = command(*words, "--budget", "0.001")
    assert done.code == 2
    assert "--budget" in done.err
    assert "--resume" in done.err
    assert not Path("calibration.json").exists()
    # Nothing was finished, so that there is nothing to keep.
    assert not Path("calibration.json.trials.jsonl").exists()


def test_a_file_without_trials_is_not_left_where_a_run_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "out.trials.jsonl"

    def refused(*trials: str) -> None:
        with without_empty(log):
            journal = Journal(log, "a study", resume=True)
            for trial in trials:
                journal.add(trial, 1)
            raise SettingsError("refused")

    for trials, is_kept in (((), False), (("one",), True), ((), True)):
        with pytest.raises(SettingsError):
            refused(*trials)
        assert log.exists() == is_kept


@pytest.mark.parametrize(
    ("most", "words"), [(100, "to 1.7 min (from"), (400, ", 6.7 min at most, should"), (3e6, ", longer, should")]
)
def test_a_longest_run_that_says_nothing_is_not_foretold(most: float, words: str) -> None:
    forecast = Forecast(low=10, high=100, most=most, audit=1, num_timed=2, attacks=[])
    assert words in foretold(forecast)
    assert "days" not in foretold(forecast)
    assert foretold(forecast, IN_TIME).endswith(f"; {IN_TIME}")


@pytest.mark.slow
def test_policy_decides_as_in_a_scan(command: Command) -> None:
    done = command(*VERIFY, "--limit", "2", *QUICK, "--noise-std", "0.01", "--max-revealed", "1e-6", "--out", "out",
                   "--format", "json")  # fmt: skip
    assert done.code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--attack", "nonsense"), "--attack"),
        (("--attack-steps", "0"), "--attack-steps"),
        (("--noise-std", "-1"), "--noise-std"),
        (("--tune",), "--limit"),
        (("--labels", "guessed"), "guessed"),
    ],
)
def test_bad_options(command: Command, arguments: tuple[str, ...], words: str) -> None:
    done = command(*VERIFY, *arguments, "--out", "out")
    assert done.code == 2
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.folder.exists()


def test_resume_needs_its_folder(command: Command) -> None:
    done = command(*VERIFY, *QUICK, "--resume")
    assert done.code == 2
    assert "--out" in done.err


@pytest.mark.slow
def test_interrupt_keeps_what_is_finished_and_resume_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*VERIFY, "--limit", "2", "--out", "out", "--format", "json", "--noise-std", "0.01", "--restarts", "1"]
    # The first one is done in no time, since it can't be run on this network; the other takes its time.
    attacks = ["--attack", "analytic", "--attack", "inverting-gradients", "--attack-steps", "150"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "riskaudit", *words, *attacks]
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out.trials.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        if log.exists() and '"trial": "analytic' in log.read_text():
            break
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, printed = run.communicate(timeout=120)
    assert run.returncode == 130, printed
    half = json.loads((tmp_path / "out" / "audit.json").read_text())["studies"]["verify"]
    assert not half["complete"]
    assert {row["attack"] for row in half["attacks"]} == {"analytic"}
    assert "--resume" in printed
    monkeypatch.chdir(tmp_path)
    assert run_command([*words, *attacks, "--resume"]) == 0
    whole = json.loads((tmp_path / "out" / "audit.json").read_text())["studies"]["verify"]
    assert whole["complete"]
    assert {row["attack"] for row in whole["attacks"]} == {"analytic", "inverting-gradients"}
    assert not log.exists()


@pytest.mark.slow
@pytest.mark.parametrize("release", ["gradient", "mean:2"])
def test_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    words = [*VERIFY, "--limit", "2", "--out", "out", "--format", "json", "--noise-std", "0.01", "--restarts", "1"]
    words += ["--release", release, "--attack", "analytic", "--attack", "inverting-gradients", "--attack-steps", "150"]
    command = [sys.executable, "-m", "riskaudit", *words, "--quiet"]
    run = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "out.trials.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        if log.exists() and '"trial": "analytic' in log.read_text():
            break
        time.sleep(0.02)
    run.kill()
    assert run.wait(timeout=120) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    finished = log.read_text()
    assert '"trial": "inverting-gradients' not in finished
    monkeypatch.chdir(tmp_path)
    assert run_command([*words, "--quiet", "--resume"]) == 0
    resumed = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert not log.exists()
    whole = [*words, "--quiet"]
    whole[whole.index("out")] = "whole"
    assert run_command(whole) == 0
    expected = json.loads((tmp_path / "whole" / "audit.json").read_text())
    assert resumed["studies"]["verify"]["complete"]
    assert len(resumed["studies"]["verify"]["attacks"]) == 4
    for one, other in zip(
        resumed["studies"]["verify"]["attacks"], expected["studies"]["verify"]["attacks"], strict=True
    ):
        assert (one["attack"], one["sample_id"]) == (other["attack"], other["sample_id"])
        assert one["metrics"] == other["metrics"]


def test_calibrate_then_scan(command: Command) -> None:
    prior = ("--prior-mean", "0.3", "--prior-std", "0.35")
    release = ("--release", "gaussian:0.02")
    made = command("calibrate", str(CHECKPOINT), "--data", str(DATA), "--limit", "10", *release, *prior,
                   *QUICK, "--coverage", "0.8", "--out", "calibration.json")  # fmt: skip
    assert made.code == 0, made.err
    found = Calibration.load("calibration.json")
    assert found.coverage == 0.8
    assert "calibration.json" in made.out
    assert not Path("calibration.json.trials.jsonl").exists()
    scan = ("scan", str(CHECKPOINT), "--data", str(DATA), "--limit", "3", *prior, "--calibration", "calibration.json")
    scanned = command(*scan, *release, "--out", "out", "--format", "json", "--format", "html")
    assert scanned.code == 0, scanned.err
    assert scanned.document["calibration"]["coverage"] == 0.8
    assert scanned.document["samples"][0]["calibrated"]["map_rmse"]["low"] is not None
    refused = command(*scan, "--release", "gaussian:0.03", "--out", "other")
    assert refused.code == 2
    assert "0.03" in refused.err
    assert not Path("other").exists()


@pytest.mark.slow
def test_calibrate_then_scan_uploads(command: Command) -> None:
    prior = ("--prior-mean", "0.3", "--prior-std", "0.35")
    release = ("--release", "mean:2,gaussian:0.02")
    made = command("calibrate", str(CHECKPOINT), "--data", str(DATA), "--limit", "10", *release, *prior,
                   *QUICK, "--coverage", "0.8", "--out", "calibration.json")  # fmt: skip
    assert made.code == 0, made.err
    assert Calibration.load("calibration.json").levels[0].num_samples == 10
    scan = ("scan", str(CHECKPOINT), "--data", str(DATA), "--limit", "4", *prior, "--calibration", "calibration.json")
    scanned = command(*scan, *release, "--out", "out", "--format", "json")
    assert scanned.code == 0, scanned.err
    sample = scanned.document["samples"][0]
    assert sample["calibrated"]["map_rmse"]["low"] is not None
    # Attacks know no other sample: nothing follows for the informed attacker, by whom verdicts go.
    assert not any(name.startswith("informed") for name in sample["calibrated"])
    assert {row["status"] for row in sample["success_probability"]} == {"exact"}
    assert any("outsider's numbers alone" in warning for warning in scanned.document["warnings"])
    assert "outsider's numbers are calibrated" in made.out
    assert command(*scan, *release, "--attacker", "outsider", "--out", "outside", "--format", "json").code == 0
    outside = json.loads(Path("outside/audit.json").read_text())
    assert {row["status"] for row in outside["samples"][0]["success_probability"]} == {"bracketed"}
    assert not any("outsider's numbers alone" in warning for warning in outside["warnings"])
    refused = command(*scan, "--release", "mean:4,gaussian:0.02", "--out", "other")
    assert refused.code == 2
    assert not Path("other").exists()


def test_calibrate_refuses_what_it_cannot_do(command: Command) -> None:
    base = ("calibrate", str(CHECKPOINT), "--data", str(DATA))
    for arguments, words in (
        (("--limit", "5", "--release", "gaussian:0.02", "--out", "c.json"), "at least 19"),
        (("--limit", "30", "--out", "c.json"), "noise"),
        (("--release", "gaussian:0.02", "--out", "missing/c.json"), "folder that exists"),
        (("--release", "gaussian:0.02", "--tune", "--out", "c.json"), "--tune"),
    ):
        done = command(*base, *arguments)
        assert done.code == 2, done.out
        assert words in done.err
        assert not Path("c.json").exists()


def test_one_configuration_file_serves_both_commands(command: Command) -> None:
    Path("riskaudit.toml").write_text(
        'attack = ["gauss-newton"]\nattack-steps = 3\nrestarts = 1\nlimit = 2\nnoise_std = [0.01]\n'
    )
    scanned = command("scan", str(CHECKPOINT), "--data", str(DATA), "--out", "out", "--format", "json")
    assert scanned.code == 0, scanned.err
    assert len(scanned.document["samples"]) == 2
    verified = command(*VERIFY, "--out", "out", "--format", "json")
    assert verified.code == 0, verified.err
    assert {row.attack for row in study_of(verified).attacks} == {"gauss-newton"}
