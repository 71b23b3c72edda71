"""NVFLARE for real: the example in the simulator, and with sites whose owners installed the filter.

All train a residual network with batch norm for two epochs of mini-batches with momentum in every round, and give the
second site's script something private to send: the guard and the filter keep it there.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from processes import environment, files_with, free_ports, running, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("nvflare") is None, reason="nvflare is not installed"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvflare"
SECRET, NUMBER = "patient-4711-has-it", 4711.28125
CARELESS, ROUNDS = 0.0002, 3

# What the second site's script does besides: metadata, metrics and output, and an exception in the last round.
PLANTED = """
        if site == "site-2":
            secret = (options.logs / "secret").read_text()
            print(secret)
            if received.current_round == 2 and options.on_violation == "block":
                raise ValueError(f"row {secret}")
            result.meta |= {"note": secret, "row": [secret]}
            result.metrics = {"accuracy": float((options.logs / "number").read_text())}
"""
RECORDER = """
from pathlib import Path
import json
import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter


class Recorder(Filter):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def process(self, shareable, fl_ctx):
        dxo, peer = from_shareable(shareable), fl_ctx.get_peer_context().get_identity_name()
        name = f"{shareable.get_header('current_round')}-{peer}"
        np.savez(Path(self.folder) / f"{name}.npz", **dxo.data)
        (Path(self.folder) / f"{name}.json").write_text(json.dumps(dxo.meta, default=repr))
        return shareable
"""
# Submits a job as an admin and waits for its end; connecting takes a process that can be killed.
SUBMIT = """
import sys, time
from nvflare.fuel.flare_api.flare_api import new_secure_session

session = new_secure_session("admin@nvidia.com", sys.argv[1], timeout=60)
try:
    while len(session.get_system_info().client_info) < 2:
        time.sleep(0.3)
    job = session.submit_job(sys.argv[2])
    session.monitor_job(job, timeout=90, poll_interval=0.5)
    print("status", session.get_job_meta(job).get("status"))
finally:
    session.close()
"""


def planted(folder: Path) -> Path:
    """A copy of the example whose second site misbehaves, and what it has to hide."""
    copy = folder / "example"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = (copy / "client.py").read_text()
    before = "        decision = seal_round("
    assert script.count(before) == 1
    (copy / "client.py").write_text(script.replace(before, PLANTED + before))
    (folder / "secret").write_text(SECRET)
    (folder / "number").write_text(str(NUMBER))
    return copy


def run_job(script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def guard_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# In a process of its own, the script hands its result over in parts, which the filter has to see whole.
@pytest.mark.parametrize("external", [False, True])
def test_the_simulator_with_a_site_that_is_sanitised(tmp_path, external) -> None:
    copy, received = planted(tmp_path), tmp_path / "received"
    received.mkdir()
    (copy / "recorder.py").write_text(RECORDER)
    job = (copy / "job.py").read_text()
    before = "    recipe.execute("
    assert job.count(before) == 1
    recording = f"    recipe.add_server_input_filter(Recorder({str(received)!r}), tasks=['train'])\n"
    job = job.replace(before, recording + before)
    (copy / "job.py").write_text(job.replace("from network", "from recorder import Recorder\nfrom network", 1))
    run_job(copy / "job.py", str(tmp_path), "--on-violation", "sanitise", *(["--external"] if external else []))

    log = guard_log(tmp_path / "guard-site-2.jsonl")
    assert [entry["decision"] for entry in log] == ["sanitise"] * ROUNDS
    assert [entry["round"] for entry in log] == list(range(ROUNDS))
    for entry in log:
        # Of the noise that the log names, and not much else.
        with np.load(received / f"{entry['round']}-site-2.npz") as held:
            statistics = [name for name in held.files if "running" in name or "tracked" in name]
            assert len(statistics) == 9
            assert not any(held[name].any() for name in statistics)
            trained = [held[name].ravel() for name in held.files if name not in statistics]
        update = np.concatenate(trained).astype(np.float64)
        assert update.std() == pytest.approx(math.hypot(entry["noise_std"], CARELESS), rel=0.2)
        assert max(one["revealed"][1] for one in entry["samples"]) <= 0.2
        meta = json.loads((received / f"{entry['round']}-site-2.json").read_text())
        assert set(meta) <= {"NUM_STEPS_CURRENT_ROUND", "params_type", "filter_history", "__filter_history__"}
    names = [f"{round}-site-{site}" for round in range(ROUNDS) for site in (1, 2)]
    assert sorted(path.stem for path in received.glob("*.npz")) == names
    first = guard_log(tmp_path / "guard-site-1.jsonl")
    # Its noise is enough; that running statistics stay is told as a change.
    assert {entry["decision"] for entry in first} == {"sanitise"}
    assert {entry["noise_std"] for entry in first} == {0.0}
    secrets = [SECRET.encode(), str(NUMBER).encode()]
    assert files_with(secrets, received) == []
    assert files_with(secrets, tmp_path / "guarded" / "server") == []


def test_sites_whose_owners_installed_the_filter(tmp_path) -> None:
    copy = planted(tmp_path)
    run_job(copy / "job.py", str(tmp_path / "job"), "--job-only")
    # The script reads what it hides, and logs, where the job says: beside the job.
    for name in ("secret", "number"):
        shutil.move(tmp_path / name, tmp_path / "job" / name)
    home = {"HOME": str(tmp_path), "NVFLARE_POC_WORKSPACE": str(tmp_path / "poc")}
    subprocess.run(["nvflare", "poc", "prepare", "-n", "2"], env=environment(**home), check=True, timeout=60)
    (kits,) = (tmp_path / "poc").glob("*/prod_00")
    (port,) = free_ports(1)
    for path in kits.glob("*/startup/*.json"):
        path.write_text(path.read_text().replace("8002", str(port)))
    parts = ["server", "site-1", "site-2"]
    for site in parts[1:]:
        shutil.copy(EXAMPLE / "privacy.json", kits / site / "local")
    submit = tmp_path / "submit.py"
    submit.write_text(SUBMIT)
    with contextlib.ExitStack() as stack:
        for part in parts:
            command = ["bash", str(kits / part / "startup" / "sub_start.sh"), "--once"]
            stack.enter_context(running(command, tmp_path / "output" / f"{part}.log", **home))
        server = tmp_path / "output" / "server.log"
        done = subprocess.run(
            [sys.executable, str(submit), str(kits / "admin@nvidia.com"), str(tmp_path / "job" / "guarded")],
            env=environment(**home), cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert "status FINISHED" in done.stdout, done.stdout + done.stderr + server.read_text()
        error = b"the training script failed with ValueError"
        # Sites send their error logs to the server unless told not to, so what is in them counts.
        wait_for(lambda: bool(files_with([error], tmp_path / "poc" / "jobs-storage")), "the site's error log", 20)

    assert [entry["decision"] for entry in guard_log(tmp_path / "job" / "guard-site-2.jsonl")] == ["block"] * 2
    assert {entry["noise_std"] for entry in guard_log(tmp_path / "job" / "guard-site-1.jsonl")} == {0.0}
    assert {entry["decision"] for entry in guard_log(tmp_path / "job" / "guard-site-1.jsonl")} == {"sanitise"}
    assert "withheld: the result carries no ticket" in (tmp_path / "output" / "site-2.log").read_text()
    assert "Round 2 started" in server.read_text(), "training didn't go on without the second site"
    secrets = [SECRET.encode(), str(NUMBER).encode()]
    for folder in (kits / "server", kits / "admin@nvidia.com", tmp_path / "poc" / "jobs-storage"):
        assert files_with(secrets, folder) == []
    assert files_with(secrets, tmp_path / "output") == ["site-2.log"]
