"""A run on Ray: the bytes of one worker, whatever is killed on the way."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from run_cases import create, numbers, work_here
from scan_cases import CHECKPOINT, DATA

pytest.importorskip("ray", reason="ray is not installed")

from riskaudit.runs.folder import RunFolder
from riskaudit.runs.run import Run

pytestmark = pytest.mark.integration
# A cluster takes only those who know its token.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **TOKEN}


def expected(folder: Path, **options):
    run = create(folder, **options)
    work_here(folder)
    return run.merge()[0]


@contextmanager
def node(*words: str) -> Iterator[psutil.Process]:
    """A node of a cluster on this machine, and nothing of it afterwards."""
    code = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "start", *words, "--num-cpus=1", "--block"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=ENVIRONMENT, **quiet) as started:
        process = psutil.Process(started.pid)
        try:
            yield process
        finally:
            own = [*process.children(recursive=True), process] if process.is_running() else []
            for each in own:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def work(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "riskaudit", "run", "work", str(folder), "-q", "--engine", "ray", *options]
    return subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE)


def raylet(of: psutil.Process) -> psutil.Process:
    """The process that makes up a node, once it is there."""
    while True:
        assert of.is_running()
        for child in of.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.name() == "raylet":
                    return child
        time.sleep(0.1)


def wait_for_shards(folder: Path, count: int, working: subprocess.Popen[bytes]) -> None:
    while len(RunFolder.open(folder).store.finished()) < count:
        assert working.poll() is None, working.communicate()[1]
        time.sleep(0.05)


def finish(working: subprocess.Popen[bytes]) -> None:
    _, said = working.communicate(timeout=300)
    assert working.returncode == 0, said.decode()


def test_a_cluster_of_its_own_and_a_killed_worker(tmp_path) -> None:
    folder = tmp_path / "run"
    run = create(folder, limit=12, shard=1)
    working = work(folder, "--workers", "2")
    wait_for_shards(folder, 2, working)
    held = [shard for shard in run.status().shards if shard.state == "leased"]
    assert held
    psutil.Process(int(held[0].worker.rpartition(":")[2])).kill()
    finish(working)
    assert numbers(run.merge()[0]) == numbers(expected(tmp_path / "whole", limit=12, shard=1))
    assert list((folder / "leases").iterdir()) == []


def test_what_a_task_says_reaches_the_caller(tmp_path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(CHECKPOINT.read_bytes())
    Run.create(tmp_path / "run", [model], DATA, limit=2, release="gaussian:0.01", arch="lenet")
    model.write_bytes(b"other")
    working = work(tmp_path / "run", "--workers", "1")
    said = working.communicate(timeout=300)[1].decode()
    assert (working.returncode, said.count("\n")) == (2, 1)
    assert "model.safetensors isn't the file" in said


@pytest.mark.slow
def test_a_killed_node(tmp_path) -> None:
    folder, address = tmp_path / "run", "127.0.0.1:6399"
    run = create(folder, limit=16, shard=1)
    head = ("--head", "--node-ip-address=127.0.0.1", "--port=6399", "--include-dashboard=false")
    with node(*head) as first:
        raylet(first)
        with node(f"--address={address}", "--node-ip-address=127.0.0.2") as second:
            lost = raylet(second)
            working = work(folder, "--address", address)
            wait_for_shards(folder, 2, working)
            lost.kill()
            finish(working)
    assert numbers(run.merge()[0]) == numbers(expected(tmp_path / "whole", limit=16, shard=1))
