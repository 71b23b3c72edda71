"""riskaudit run from the command line: the words, the exit codes, and what lies in the folder afterwards."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from run_cases import work_here
from scan_cases import CHECKPOINT, DATA, loaded_modules, save_images

from riskaudit.runs.engines.processes import WorkerProcesses

CREATE = ("run", "create", "DIR", str(CHECKPOINT), "--data", str(DATA), "--arch", "lenet")
NOISY = ("--limit", "2", "--release", "gaussian:0.01", "--seed", "3")


@pytest.fixture(autouse=True)
def here(monkeypatch) -> None:
    """Work in this process, where torch is loaded already; processes have tests of their own."""
    monkeypatch.setattr(WorkerProcesses, "work", lambda self, progress=None: work_here(self._folder.path, self._only))


def test_the_whole_way_gives_what_scan_gives(command, scan) -> None:
    assert command(*CREATE, *NOISY).code == 0
    status = command("run", "status", "DIR")
    assert (status.code, "0 of 1 shard finished" in status.out) == (1, True)
    assert command("run", "merge", "DIR").code == 2
    assert command("run", "work", "DIR", "--workers", "2").code == 0
    status = command("run", "status", "DIR", "--json")
    assert status.code == 0
    assert json.loads(status.out)["finished_samples"] == 2
    merged = command("run", "merge", "DIR", "--out", "out", "--format", "json", "--format", "html")
    assert merged.code == 0, merged.err
    assert "not recorded" in (merged.folder / "audit.html").read_text(encoding="utf-8")
    scanned = scan("--arch", "lenet", "--release", "gaussian:0.01", "--seed", "3")
    whole, part = scanned.document, merged.document
    for document in (whole, part):
        del document["created_at"], document["cost"]
    assert part == whole


def test_merging_again_gives_the_same_bytes(command) -> None:
    command(*CREATE, *NOISY)
    command("run", "work", "DIR", "-q")
    assert command("run", "merge", "DIR", "--format", "json").code == 0
    audit = Path("DIR/merged/audit.json")
    first = audit.read_bytes()
    assert command("run", "merge", "DIR", "--format", "json").code == 0
    assert audit.read_bytes() == first
    assert command("run", "status", "DIR").code == 0


def test_limits_are_those_of_a_scan(command, scan) -> None:
    assert command(*CREATE, *NOISY, "--max-revealed", "0.2").code == 0
    command("run", "work", "DIR")
    merged = command("run", "merge", "DIR", "--out", "out", "--format", "json")
    scanned = scan("--arch", "lenet", "--release", "gaussian:0.01", "--seed", "3", "--max-revealed", "0.2")
    assert merged.code == scanned.code == 1
    assert merged.document["policy"] == scanned.document["policy"]
    assert merged.document["noise_needed"] == scanned.document["noise_needed"]
    Path("policy.toml").write_text("[policy]\nmax_revealed = 1.0\n", encoding="utf-8")
    assert command("run", "create", "OTHER", *CREATE[3:], *NOISY).code == 0
    command("run", "work", "OTHER")
    assert command("run", "merge", "OTHER", "--policy", "policy.toml", "--format", "json").code == 0


def test_a_partial_merge_exceeds_every_policy(command) -> None:
    command(*CREATE, *NOISY, "--shard", "1")
    assert command("run", "work", "DIR", "--shard", "1").code == 0
    refused = command("run", "merge", "DIR")
    assert (refused.code, "--partial" in refused.err, refused.err.count("\n")) == (2, True, 1)
    Path("policy.toml").write_text("[policy]\nmax_revealed = 1.0\nmax_unassessed = 1.0\n", encoding="utf-8")
    merged = command("run", "merge", "DIR", "--partial", "--policy", "policy.toml", "--out", "out")
    assert merged.code == 1
    assert merged.result.data.num_unaudited == 1
    assert "not audited" in (merged.folder / "audit.html").read_text(encoding="utf-8")


def test_several_checkpoints_have_a_folder_each(command, tmp_path) -> None:
    (tmp_path / "digits-lenet.safetensors").write_bytes(CHECKPOINT.read_bytes())
    more = str(tmp_path / "digits-lenet.safetensors")
    assert command(*CREATE[:4], more, *CREATE[4:], *NOISY).code == 0
    command("run", "work", "DIR")
    merged = command("run", "merge", "DIR", "--format", "json")
    assert merged.code == 0, merged.err
    assert sorted(path.name for path in Path("DIR/merged").iterdir()) == ["digits-lenet-1", "digits-lenet-2"]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "work", "nowhere"), ("run", "status", "."), ("run", "merge", "."),
        ("run", "create", "DIR", "nowhere.pt", "--data", str(DATA)),
        ("run", "create", "DIR", str(CHECKPOINT), "--data", "nowhere.npz"),
        (*CREATE, "--budget", "3"), (*CREATE, "--max-revealed", "7"), (*CREATE, "--shard", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_refused(command, words) -> None:
    outcome = command(*words)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert not Path("DIR").exists()


def test_no_private_input_is_in_the_folder(command, tmp_path) -> None:
    data = save_images(tmp_path / "faces", {"alice": ["alice-1.png", "alice-2.png"], "bob": ["bob-1.png"]}, size=8)
    words = ("run", "create", "DIR", str(CHECKPOINT), "--data", str(data), "--arch", "lenet")
    options = ("--release", "gaussian:0.01", "--classes", "alice,bob,c,d,e,f,g,h,i,j", "--shard", "2")
    assert command(*words, *options).code == 0
    command("run", "work", "DIR")
    assert command("run", "merge", "DIR").code == 0
    kept = [path for folder in ("shards", "leases") for path in Path("DIR", folder).rglob("*") if path.is_file()]
    assert len(kept) == 2
    for path in kept:
        content = path.read_text(encoding="utf-8")
        assert "alice" not in content
        assert '"image_png":null' in content
    # Names that were given as an option are what the workers read the data by.
    assert stat.S_IMODE(Path("DIR/run.json").stat().st_mode) == 0o600


def test_targets_that_are_no_classes_stay_out(command, tmp_path) -> None:
    from scan_cases import save_arrays, save_mlp

    inputs, targets = np.random.default_rng(0).random((4, 6)), np.linspace(0.1234567, 0.7654321, 4)[:, None]
    data = save_arrays(tmp_path / "table.npz", x=inputs, y=targets)
    model = save_mlp(tmp_path / "mlp.pt", (6, 5, 1))
    assert command("run", "create", "DIR", str(model), "--data", str(data), "--loss", "mse", "--arch", "mlp").code == 0
    command("run", "work", "DIR")
    (shard,) = Path("DIR/shards").iterdir()
    text = shard.read_text(encoding="utf-8")
    for value in (*inputs.flatten(), *targets.flatten()):
        assert repr(float(value)) not in text


@pytest.mark.parametrize("option", ["--show-samples", "--plain-ids"])
def test_what_shows_samples_is_for_the_owner_alone(command, option) -> None:
    command(*CREATE, *NOISY, "--shard", "1", option)
    command("run", "work", "DIR", "--shard", "0")
    command("run", "merge", "DIR", "--partial", "--format", "json")
    for path in [Path("DIR"), *Path("DIR").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_looking_and_helping_load_no_torch(command) -> None:
    command(*CREATE, *NOISY)
    code = "from riskaudit.cli.app import run\nassert run(['run', 'status', 'DIR', '--json']) == 1"
    assert loaded_modules(["torch", "scipy"], f"{code}\nrun(['run', 'work', '-h'])") == []
