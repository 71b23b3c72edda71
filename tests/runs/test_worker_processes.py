"""Real processes: several at once, killed ones, and samples that bring them down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_cases import create, create_of_another_model, leave_lease, numbers, work_here
from scan_cases import CHECKPOINT, DATA, loaded_modules

from riskaudit.errors import EngineError, RunError
from riskaudit.runs.engines.processes import WorkerProcesses
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.run import Run

# The user's code is run by every worker: this brings down the process that audits one of the samples.
DEADLY = """
import os, signal, sys

from riskaudit.audit.shards import AuditShard
from riskaudit.inputs.architectures.registry import ARCHITECTURES

if sys.argv[0].endswith("worker.py"):
    run = AuditShard.run

    def deadly(shard, client):
        if 3 in shard.indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(shard, client)

    AuditShard.run = deadly

def build():
    return ARCHITECTURES["lenet"].build(features=48)
"""


def command(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """riskaudit run work, in the background."""
    words = [sys.executable, "-m", "riskaudit", "run", "work", str(folder), "-q", *options]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def expected(folder: Path, **options) -> str:
    """The merged audit of a run that one process did without a break."""
    run = create(folder, **options)
    work_here(folder)
    return run.merge()[0].to_json()


@pytest.mark.slow
def test_a_worker_starts_without_what_it_does_not_need() -> None:
    """Each worker, and each that takes the place of one that died, pays for what is imported: a second for these."""
    heavy = ["scipy.stats", "pandas", "matplotlib", "sklearn", "typst", "riskaudit.report", "riskaudit.studies"]
    assert loaded_modules(heavy, "import riskaudit.runs.work, riskaudit.runs.folder") == []


def test_workers_have_the_threads_of_their_run_whatever_the_environment_says(tmp_path, monkeypatch) -> None:
    """Else several workers would each take all processors: torch, numpy and MKL look in places of their own."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "64")
    create(tmp_path / "run", limit=2, shard=2, threads=2)
    started, popen = [], subprocess.Popen

    def refusing(_, **options) -> subprocess.Popen[bytes]:
        started.append(options["env"])
        return popen([sys.executable, "-c", "raise SystemExit(2)"], **options)

    monkeypatch.setattr(subprocess, "Popen", refusing)
    with pytest.raises(RunError):
        WorkerProcesses(RunFolder.open(tmp_path / "run"), 1).work()
    (environment,) = started
    assert {value for name, value in environment.items() if name.endswith("_NUM_THREADS")} == {"2"}


def test_processes_finish_a_run(tmp_path) -> None:
    seen = []
    run = create(tmp_path / "run", limit=4, shard=2)
    run.execute(workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    assert run.status().complete
    # Finished already.
    run.execute()


@pytest.mark.slow
def test_what_a_worker_says_reaches_the_caller(tmp_path) -> None:
    run = create_of_another_model(tmp_path)
    with pytest.raises(RunError, match=r"model\.safetensors isn't the file"):
        run.execute()


def test_workers_that_never_begin_are_given_up(tmp_path, monkeypatch) -> None:
    create(tmp_path / "run", limit=2)
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    with pytest.raises(EngineError, match=r"3 times"):
        WorkerProcesses(RunFolder.open(tmp_path / "run"), 1).work()


@pytest.mark.slow
def test_four_workers_and_two_commands(tmp_path) -> None:
    whole = expected(tmp_path / "whole", limit=12)
    run = create(tmp_path / "run", limit=12)
    commands = [command(tmp_path / "run", "--workers", "2") for _ in range(2)]
    assert [each.wait(300) for each in commands] == [0, 0]
    merged = json.loads(run.merge()[0].to_json())
    assert merged.pop("created_at") != ""
    whole = json.loads(whole)
    whole.pop("created_at")
    assert merged == whole
    assert list((tmp_path / "run" / "leases").iterdir()) == []


@pytest.mark.slow
def test_killed_half_way_and_resumed(tmp_path) -> None:
    folder = tmp_path / "run"
    run = create(folder, limit=12, shard=1)
    killed = command(folder, "--workers", "2")
    while len(RunFolder.open(folder).store.finished()) < 2:
        assert killed.poll() is None
        time.sleep(0.02)
    for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
        process.kill()
    killed.wait()
    half = run.status()
    assert not half.complete
    assert command(folder).wait(300) == 0
    again = run.merge()[0]
    assert numbers(again) == numbers(type(again).from_json(expected(tmp_path / "whole", limit=12, shard=1)))
    # The same run in one go, from the same manifest.
    for path in (folder / "shards").iterdir():
        path.unlink()
    work_here(folder)
    assert run.merge()[0].to_json() == again.to_json()


def at_work(folder: Path) -> tuple[Run, subprocess.Popen[bytes]]:
    """A run, and a command that has taken one of its shards."""
    run = create(folder, limit=12, shard=1)
    working = command(folder)
    while not run.status().count("leased"):
        assert working.poll() is None
        time.sleep(0.02)
    return run, working


@pytest.mark.slow
def test_an_interrupt_gives_shards_back(tmp_path) -> None:
    run, working = at_work(tmp_path / "run")
    working.send_signal(signal.SIGINT)
    assert working.wait(60) == 130
    assert run.status().count("leased") == run.status().count("stale") == 0
    assert not run.status().complete


@pytest.mark.slow
def test_workers_end_with_their_command(tmp_path) -> None:
    run, working = at_work(tmp_path / "run")
    children = psutil.Process(working.pid).children(recursive=True)
    os.kill(working.pid, signal.SIGKILL)
    working.wait()
    assert children
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert run.status().count("leased") == 0


@pytest.mark.slow
def test_a_sample_that_brings_down_its_process(tmp_path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY, encoding="utf-8")
    options = {"arch": f"{tmp_path / 'deadly.py'}:build", "release": "gaussian:0.01"}
    run = Run.create(tmp_path / "run", [CHECKPOINT], DATA, limit=6, shard=2, heartbeat=0.5, **options)
    run.execute()
    (merged,) = run.merge()
    assert [row.status == "failed" for row in merged.samples] == [False, False, False, True, False, False]
    assert [shard.batch for shard in run.status().shards] == [2, 1, 2]


@pytest.mark.slow
def test_a_shard_of_a_machine_that_fell_silent(tmp_path) -> None:
    run = create(tmp_path / "run", limit=2, heartbeat=0.2)
    leave_lease(tmp_path / "run", 0, 1)
    assert run.status().count("leased") == 1
    run.execute()
    assert run.status().complete
