"""guard-check, ledger and log as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit.guard import AuditLog, Policy
from riskaudit.inputs.architectures.registry import get_architecture


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "riskaudit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A ledger and a log after two rounds."""
    folder = tmp_path_factory.mktemp("guard")
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.9), log=folder / "log.jsonl", ledger=folder / "ledger.db")
    for number in range(2):
        assert guard.review(batch, gradient(model, batch, NOISE, number), ids=range(6)).action == "allow"
    guard.close()
    return folder


def test_ledger_show(written) -> None:
    done = run("ledger", "show", written / "ledger.db", "--limit", 4)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0], lines[-1]) == (0, "2 rounds, 6 samples", "and 2 more; --limit shows them")
    shares = [float(line.split()[2]) for line in lines[2:6]]
    assert shares == sorted(shares, reverse=True)
    assert all(line.split()[1] == "2" for line in lines[2:6])


def test_ledger_verify_and_export(written, tmp_path) -> None:
    done = run("ledger", "verify", written / "ledger.db")
    assert (done.returncode, done.stdout) == (0, f"{written / 'ledger.db'} is whole: 2 rounds\n")
    out = tmp_path / "ledger.json"
    assert run("ledger", "export", written / "ledger.db", "--out", out).returncode == 0
    exported = json.loads(out.read_text())
    assert [len(exported["rounds"]), len(exported["samples"])] == [2, 6]
    assert json.loads(run("ledger", "export", written / "ledger.db").stdout) == exported


def test_log_verify(written, tmp_path) -> None:
    head = AuditLog(written / "log.jsonl").head
    done = run("log", "verify", written / "log.jsonl", "--head", head)
    assert (done.returncode, done.stdout) == (0, f"{written / 'log.jsonl'} is whole: 2 lines, last hash {head}\n")
    cut = tmp_path / "log.jsonl"
    cut.write_text((written / "log.jsonl").read_text().splitlines(keepends=True)[0])
    done = run("log", "verify", cut)
    assert (done.returncode, "it ends at line 1, and the counter is at 2" in done.stdout) == (1, True)
    done = run("log", "verify", cut, "--head", head)
    assert (done.returncode, "cut off its end" in done.stdout) == (1, True)
    cut.write_text(cut.read_text().replace('"allow"', '"block"'))
    done = run("log", "verify", cut)
    assert (done.returncode, "line 1 was changed" in done.stdout) == (1, True)


@pytest.mark.parametrize("topic", ["ledger", "log"])
def test_files_that_are_none(tmp_path, topic) -> None:
    for name, content in (("absent", None), ("diary", b"dear diary\n" * 100)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        done = run(topic, "verify", path)
        assert done.returncode in (1, 2)
        assert done.returncode == 2 or "isn't JSON" in done.stdout
        assert "Traceback" not in done.stderr
        assert path.exists() == (content is not None), "looking must not make files"


@pytest.fixture
def config(tmp_path):
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz", images=generator.random((12, 1, 28, 28), dtype=np.float32), labels=np.arange(12) % 10
    )
    torch.manual_seed(0)
    torch.save(
        get_architecture("lenet").build(channels=1, features=12 * 49, classes=10).state_dict(), tmp_path / "lenet.pt"
    )
    path = tmp_path / "guard.toml"
    path.write_text(
        '[policy]\nmax_revealed = 0.5\non_violation = "warn"\n'
        f'[guard]\ncheckpoint = "{tmp_path / "lenet.pt"}"\ndata = "{tmp_path / "data.npz"}"\nbatch_size = 4\n'
        'release = "gaussian:0.01"\nprior_std = 0.3\n'
    )
    return path


def test_guard_check_measures(config, tmp_path) -> None:
    done = run("guard-check", config, "--repeats", 2, "--json", tmp_path / "cost.json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "max_revealed = 0.5, max_unassessed = 0.0, on_violation = warn" in done.stdout
    assert "one review:" in done.stdout
    assert "budget_seconds =" in done.stdout
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["batch_size"] == 4
    assert sum(cost["actions"].values()) == 3
    assert cost["gradients"] == pytest.approx(cost["review_seconds"] / cost["gradient_seconds"])


def test_guard_check_doubts_a_recognised_model(config) -> None:
    done = run("guard-check", config, "--repeats", 1, "--quiet")
    assert "WARNING: lenet was only recognised" in done.stdout
    # The advice: name it.
    done = run("guard-check", config, "--repeats", 1, "--quiet", "--arch", "lenet")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout


def test_guard_check_validates_without_a_model(tmp_path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[tool.riskaudit.policy]\nmax_revealed = 0.2\n")
    done = run("guard-check", path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "no checkpoint and data were given, so nothing was measured",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[policy]\nmax_revealed = 2.0\n", "between 0 and 1"),
        ('[policy]\non_violation = "warn"\n', "expected a limit"),
        ('[policy]\nmax_revealed = 0.2\non_violation = "ask"\n', "one of block, sanitise, warn"),
        ("[policy]\nmax_revealed = 0.2\n[guard]\nbatch = 3\n", "found 'batch'"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\nbatch_size = "3"\n', "to be a int"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\narch = "evil.py:model"\n', "can't name code"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\ndata = "evil.py:data"\n', "give --data"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\nloss = "evil.py:loss"\n', "give --loss"),
        ("[policy\n", "found a mistake"),
    ],
)
def test_guard_check_refuses(tmp_path, text, words) -> None:
    path = tmp_path / "guard.toml"
    path.write_text(text)
    done = run("guard-check", path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
