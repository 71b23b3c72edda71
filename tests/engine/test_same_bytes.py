"""Results are the same bytes from one process, from several, and from a run that was killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scan_cases import CHECKPOINT, DATA
from study_cases import NOISE, digits, network

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit, audit_client
from riskaudit.audit.client import ClientDescription, make_client
from riskaudit.cli.app import run
from riskaudit.engine import ProcessEngine, SerialEngine
from riskaudit.errors import SettingsError
from riskaudit.inputs import Checkpoint
from riskaudit.results import AuditResult
from riskaudit.studies.base import StudyRun
from riskaudit.studies.initialization.run import initialization_study
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.run import verify

# What differs between two runs of the same command.
VARYING = {"seconds", "created_at", "peak_memory_bytes", "timings"}


def content(result: AuditResult | str) -> Any:
    """An audit without what may vary."""
    return _without_varying(json.loads(result if isinstance(result, str) else result.to_json()))


def _without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_varying(each) for key, each in value.items() if key not in VARYING}
    return [_without_varying(each) for each in value] if isinstance(value, list) else value


SETTINGS = {
    "dense": AuditSettings(batch_size=2),
    "lanczos": AuditSettings(batch_size=1, solver="lanczos", release=f"gaussian:{NOISE}", max_matvecs=20),
    "prior": AuditSettings(batch_size=4, prior="data", dtype="float32"),
    "uploads": AuditSettings(batch_size=2, release=f"mean:2,dropout:0.2,gaussian:{NOISE}"),
    "training": AuditSettings(
        release=f"local:epochs=1:batch=2:lr=0.1:shuffle=1,gaussian:{NOISE}", solver="lanczos", max_matvecs=3
    ),
}


@pytest.mark.parametrize(
    "name",
    ["dense", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lanczos", "prior", "uploads", "training"))],
)
def test_scan(name: str) -> None:
    client = make_client(network(), digits({"prior": 24, "uploads": 4}.get(name, 5)), SETTINGS[name])
    whole = content(audit_client(client))
    for workers in (2,) if name == "uploads" else (1, 4):
        with ProcessEngine(workers) as engine:
            assert content(audit_client(client, engine)) == whole


@pytest.mark.slow
def test_a_killed_worker_changes_nothing() -> None:
    client = make_client(network(), digits(6), SETTINGS["dense"])
    killed = []
    with ProcessEngine(2) as engine:

        def kill(done: int, total: int) -> None:
            if not killed:
                killed.append(engine._pool[-1].process)
                killed[0].kill()

        found = audit_client(client, engine, progress=kill)
    assert killed[0].exitcode == -signal.SIGKILL
    assert content(found) == content(audit_client(client))


def _verified(workers: int) -> AuditResult:
    attacks = AttackSettings(("gauss-newton", "local"), steps=3, restarts=1)
    run = StudyRun(show_samples=True, workers=workers)
    return verify(network(), digits(4), AuditSettings(), attacks, run, noise_stds=[NOISE, 0.0])


def _initialized(workers: int) -> AuditResult:
    run = StudyRun(workers=workers)
    settings = AuditSettings(release=f"gaussian:{NOISE}")
    return initialization_study(network(), digits(5), settings, run, seeds=1, names=("uniform", "default"))


@pytest.mark.slow
@pytest.mark.parametrize("run", [_verified, _initialized])
def test_studies(run: Callable[[int], AuditResult]) -> None:
    assert content(run(4)) == content(run(1))


class Unsendable(torch.nn.Module):
    """Holds a function without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.scale = lambda x: 0.5 * x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.inner(x))


class Forgetful(torch.nn.Module):
    """Pickled, it isn't what it was."""

    def __init__(self, attribute: str, value: float) -> None:
        super().__init__()
        self.inner, self.scale, self.steepness = network(), 1.0, 1.0
        self.forgotten = {attribute: value}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **self.forgotten}

    def __deepcopy__(self, memo: dict[int, Any]) -> Forgetful:
        other = Forgetful("scale", 1.0)
        other.scale, other.steepness, other.forgotten = self.scale, self.steepness, self.forgotten
        other.inner.load_state_dict(self.inner.state_dict())
        return other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The first changes outputs and gradients, the second the gradient alone.
        outputs = self.inner(self.scale * x)
        return self.steepness * outputs + (1 - self.steepness) * outputs.detach()


@pytest.mark.slow
@pytest.mark.parametrize(("attribute", "value"), [("scale", 1e-6), ("steepness", 1e-6), ("scale", 0.999)])
def test_a_model_that_pickling_changes_is_not_audited_for_the_one_at_hand(attribute: str, value: float) -> None:
    model = Forgetful(attribute, value)
    assert audit(model, digits(2), release=f"gaussian:{NOISE}").samples[0].verdict == "high"
    with pytest.raises(SettingsError, match=r"other processes .*after pickling"):
        audit(model, digits(2), release=f"gaussian:{NOISE}", workers=2)


def test_what_several_workers_cannot_do() -> None:
    with pytest.raises(SettingsError, match=r"`budget`.*`workers=1`"):
        audit(network(), digits(2), budget=10.0, workers=2)
    with pytest.raises(SettingsError, match="can't be sent"):
        audit(Unsendable(), digits(2), workers=2)
    with pytest.raises(SettingsError, match="at least 1"):
        audit(network(), digits(2), workers=0)


def test_memory_is_counted_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(network(), digits(2), AuditSettings())
    free = 2 * 3 * client.maker.sample_bytes
    for module in ("plan", "shards"):
        monkeypatch.setattr(f"riskaudit.audit.{module}.free_memory", lambda _: free)
    with pytest.raises(SettingsError, match=r"4 workers .*fewer `workers`"):
        audit_client(client, ProcessEngine(4))
    assert len(audit_client(client, SerialEngine()).samples) == 2


def test_workers_are_spread_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(device: str) -> list[int]:
        checkpoint = Checkpoint.from_model(network())
        return list(ClientDescription(checkpoint, digits(2), AuditSettings(device=device)).devices())

    assert devices("cpu") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices("auto") == [0, 1, 2]
    assert devices("cuda:1") == []


@pytest.mark.slow
def test_a_model_of_the_user_s_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom neighbour import Scaled\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n        self.inner = torch.nn.Linear(64, 10)\n        self.scaled = Scaled()\n"
        "    def forward(self, x):\n        return self.scaled(self.inner(x.flatten(1)))\n"
    )
    (tmp_path / "neighbour.py").write_text(
        "import torch\nclass Scaled(torch.nn.Module):\n    def forward(self, x):\n        return 0.5 * x\n"
    )
    from riskaudit.inputs.user_code import load_user_function

    model = load_user_function(f"{tmp_path / 'mine.py'}:Mine")()
    settings = AuditSettings(batch_size=1)
    try:
        assert content(audit(model, digits(2), settings, workers=2)) == content(audit(model, digits(2), settings))
    finally:
        del sys.modules["neighbour"]


STUDY = ["study", "initialization", str(CHECKPOINT), "--data", str(DATA), "--limit", "4", "--seeds", "1",
         "--format", "json", "--quiet"]  # fmt: skip


# Killed scans are taken up every time: `tests/cli/test_killed_scans.py`.
@pytest.mark.slow
def test_a_killed_study_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [sys.executable, "-m", "riskaudit", *STUDY, "--workers", "2", "--out", "out"]
    log = tmp_path / "out.trials.jsonl"
    with subprocess.Popen(several, cwd=tmp_path, stderr=subprocess.DEVNULL) as study:
        deadline = time.monotonic() + 120
        while not (log.exists() and '"trial": "checkpoint"' in log.read_text()):
            assert time.monotonic() < deadline
            assert study.poll() is None
            time.sleep(0.01)
        os.kill(study.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(tmp_path)
    assert run([*STUDY, "--workers", "2", "--out", "out", "--resume"]) == 0
    assert run([*STUDY, "--out", "whole"]) == 0
    resumed, whole = ((tmp_path / place / "audit.json").read_text() for place in ("out", "whole"))
    assert content(resumed) == content(whole)
    assert "--workers" not in whole
