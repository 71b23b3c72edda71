"""guard-check, ledger and log as a user runs them."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit import inputs
from riskaudit.cli import console
from riskaudit.guard import AuditLog, Policy, cost
from riskaudit.inputs.architectures.registry import get_architecture


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


def test_ledger_show(command, written) -> None:
    done = command("ledger", "show", written / "ledger.db", "--limit", 4)
    lines = done.out.splitlines()
    assert (done.code, lines[0]) == (0, "2 rounds, 6 samples")
    assert re.search("2 more.*--limit", lines[-1])
    shares = [float(line.split()[2]) for line in lines[2:6]]
    assert shares == sorted(shares, reverse=True)
    assert all(line.split()[1] == "2" for line in lines[2:6])


def test_ledger_verify_and_export(command, written, tmp_path) -> None:
    done = command("ledger", "verify", written / "ledger.db")
    assert (done.code, done.out) == (0, f"{written / 'ledger.db'} is whole: 2 rounds\n")
    out = tmp_path / "ledger.json"
    assert command("ledger", "export", written / "ledger.db", "--out", out).code == 0
    exported = json.loads(out.read_text())
    assert [len(exported["rounds"]), len(exported["samples"])] == [2, 6]
    assert json.loads(command("ledger", "export", written / "ledger.db").out) == exported


def test_log_verify(command, written, tmp_path) -> None:
    head = AuditLog(written / "log.jsonl").head
    done = command("log", "verify", written / "log.jsonl", "--head", head)
    assert done.code == 0
    assert re.search(rf"log\.jsonl is whole: 2 lines.* {head}", done.out)
    cut = tmp_path / "log.jsonl"
    cut.write_text((written / "log.jsonl").read_text().splitlines(keepends=True)[0])
    done = command("log", "verify", cut)
    assert (done.code, bool(re.search("line 1, .*counter is at 2", done.out))) == (1, True)
    done = command("log", "verify", cut, "--head", head)
    assert (done.code, "cut off its end" in done.out) == (1, True)
    cut.write_text(cut.read_text().replace('"allow"', '"block"'))
    done = command("log", "verify", cut)
    assert (done.code, "line 1 was changed" in done.out) == (1, True)


@pytest.mark.parametrize("topic", ["ledger", "log"])
def test_files_that_are_none(command, tmp_path, topic) -> None:
    for name, content in (("absent", None), ("diary", b"dear diary\n" * 100)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        done = command(topic, "verify", path)
        assert done.code in (1, 2)
        assert done.code == 2 or "isn't JSON" in done.out
        assert "Traceback" not in done.err
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


def test_guard_check_measures(command, config, tmp_path) -> None:
    done = command("guard-check", config, "--repeats", 2, "--json", tmp_path / "cost.json", "--quiet")
    assert done.code == 0, done.err
    for setting in ("max_revealed = 0.5", "max_unassessed = 0.0", "on_violation = warn"):
        assert setting in done.out
    assert "one review:" in done.out
    assert "budget_seconds =" in done.out
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["batch_size"] == 4
    assert sum(cost["actions"].values()) == 3
    assert cost["units"] == pytest.approx(cost["review_seconds"] / cost["unit_seconds"])


def test_guard_check_says_that_it_reads(command, config, monkeypatch) -> None:
    """In a log, once reading takes a while."""
    monkeypatch.setattr(console, "_SILENCE", 0.05)
    monkeypatch.setattr(inputs, "load_loss", lambda name, load=inputs.load_loss: (time.sleep(0.3), load(name))[1])
    done = command("guard-check", config, "--repeats", 1)
    assert done.code == 0
    assert "reading the model and the samples, " in done.err


@pytest.mark.parametrize(("seconds", "is_share"), [(1e-5, False), (0.02, True)])
def test_guard_check_takes_no_share_of_next_to_no_time(command, config, monkeypatch, seconds, is_share) -> None:
    measured = cost.review_cost

    def as_if(*arguments, **options):
        return replace(measured(*arguments, **options), unit_seconds=seconds)

    monkeypatch.setattr(cost, "review_cost", as_if)
    done = command("guard-check", config, "--repeats", 1, "--quiet")
    assert ("% of a local epoch" in done.out) == is_share
    assert ("go by the seconds of a review" in done.out) == (not is_share)
    # Absolute times are there either way.
    assert f"of {seconds:.3g} s" in done.out


def test_guard_check_foretells_the_review_of_a_round(command, config, tmp_path) -> None:
    settings = config.read_text().replace("gaussian:0.01", "local:epochs=2:batch=2:lr=0.1:momentum=0.9,gaussian:0.01")
    config.write_text(settings)
    options = ("--repeats", 1, "--quiet", "--arch", "lenet")
    done = command("guard-check", config, "--json", tmp_path / "cost.json", *options)
    assert done.code == 0, done.err
    assert "times the round's own training" in done.out
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["unit"] == "training"
    assert cost["units"] == pytest.approx(cost["review_seconds"] / cost["unit_seconds"])
    config.write_text(settings.replace(",gaussian", ",secagg:4,gaussian"))
    done = command("guard-check", config, *options)
    assert done.code == 2
    assert "its own client's upload" in done.err


def test_guard_check_doubts_a_recognised_model(command, config) -> None:
    done = command("guard-check", config, "--repeats", 1, "--quiet")
    assert "WARNING: lenet was only recognised" in done.out
    # The advice: name it.
    done = command("guard-check", config, "--repeats", 1, "--quiet", "--arch", "lenet")
    assert done.code == 0, done.err
    assert "WARNING" not in done.out


def test_guard_check_validates_without_a_model(command, tmp_path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[tool.riskaudit.policy]\nmax_revealed = 0.2\n")
    done = command("guard-check", path)
    assert done.code == 0
    assert "nothing was measured" in done.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[policy]\nmax_revealed = 2.0\n", "between 0 and 1"),
        ('[policy]\non_violation = "warn"\n', "expected a limit"),
        ('[policy]\nmax_revealed = 0.2\non_violation = "ask"\n', "one of block, sanitise, warn"),
        ("[policy]\nmax_revealed = 0.2\n[guard]\nbatch = 3\n", "found 'batch'"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\nbatch_size = "3"\n', "whole number"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\narch = "evil.py:model"\n', "can't name code"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\ndata = "evil.py:data"\n', "give --data"),
        ('[policy]\nmax_revealed = 0.2\n[guard]\nloss = "evil.py:loss"\n', "give --loss"),
        ("[policy\n", "found a mistake"),
    ],
)
def test_guard_check_refuses(command, tmp_path, text, words) -> None:
    path = tmp_path / "guard.toml"
    path.write_text(text)
    done = command("guard-check", path)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
