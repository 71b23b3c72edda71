"""A run on Ray: the bytes of one worker, whatever is killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from run_cases import create, numbers, work_here
from scan_cases import CHECKPOINT, DATA

pytest.importorskip("ray", reason="ray is not installed")

from riskaudit.runs.folder import RunFolder
from riskaudit.runs.run import Run

pytestmark = pytest.mark.integration
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def expected(folder: Path, **options):
    run = create(folder, **options)
    work_here(folder)
    return run.merge()[0]


def ray(*words: str) -> subprocess.CompletedProcess[str]:
    """The ray command of this installation."""
    code = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def work(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "riskaudit", "run", "work", str(folder), "-q", "--engine", "ray", *options]
    return subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE)


def processes(name: str) -> list[psutil.Process]:
    """Ray's own processes of a kind."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if name in words:
            found.append(process)
    return found


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


@pytest.fixture
def cluster() -> Iterator[str]:
    """Two nodes on this machine."""
    head = ray(
        "start", "--head", "--node-ip-address=127.0.0.1", "--port=6399", "--num-cpus=1", "--include-dashboard=false"
    )
    assert head.returncode == 0, head.stderr
    second = ray("start", "--address=127.0.0.1:6399", "--node-ip-address=127.0.0.2", "--num-cpus=1")
    try:
        assert second.returncode == 0, second.stderr
        yield "127.0.0.1:6399"
    finally:
        ray("stop", "--force")


@pytest.mark.slow
def test_a_killed_node(tmp_path, cluster) -> None:
    folder = tmp_path / "run"
    run = create(folder, limit=16, shard=1)
    working = work(folder, "--address", cluster)
    wait_for_shards(folder, 2, working)
    raylets = [each for each in processes("raylet/raylet") if "--node_ip_address=127.0.0.2" in each.cmdline()]
    assert len(raylets) == 1
    raylets[0].kill()
    finish(working)
    assert numbers(run.merge()[0]) == numbers(expected(tmp_path / "whole", limit=16, shard=1))
