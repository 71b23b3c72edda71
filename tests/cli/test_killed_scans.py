"""A scan that is killed or interrupted leaves a complete folder of results or none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scan_cases import CHECKPOINT, DATA, FORMATS, python, words

from riskaudit.files import MANIFEST
from riskaudit.report import FILE_NAMES
from riskaudit.results import AuditResult

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# One whole scan, timed, then forks of this process that repeat it and are killed along the way.
KILLED = """
import json, os, signal, sys, time
os.environ["OMP_NUM_THREADS"] = "1"
from pathlib import Path
from riskaudit.cli.app import run
words, out, moments = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def scan(name):
    return run([*words, "--quiet", "--out", str(out / name / "results")])
assert scan("warm") == 0
started = time.perf_counter()
assert scan("whole") == 0
needed = time.perf_counter() - started
killed = []
for moment in range(moments):
    child = os.fork()
    if not child:
        os._exit(scan(str(moment)))
    time.sleep(needed * (moment + 0.5) / moments)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed.append(os.WIFSIGNALED(status))
print(json.dumps(killed))
"""
# The folder is what is tested, not the figures of the page and the PDF, which take longest.
WRITTEN = ["json", "csv", "md"]
SCAN = ["scan", str(CHECKPOINT), "--data", str(DATA), "--limit", "4", *[f"--format={name}" for name in WRITTEN]]


def check_complete(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*(FILE_NAMES[name] for name in WRITTEN), MANIFEST])
    assert len(AuditResult.load(folder / "audit.json").samples) == 4
    assert (folder / "audit.md").read_bytes().endswith(b"\n")
    assert len((folder / "samples.csv").read_bytes().splitlines()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--release", "mean:2", "--batch-size", "2"]])
def test_killed_at_moments_spread_over_the_run(tmp_path, options) -> None:
    done = python(KILLED, json.dumps([*SCAN, *options]), str(tmp_path), "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert sum(killed) >= 4
    check_complete(tmp_path / "whole" / "results")
    for moment in range(len(killed)):
        folder = tmp_path / str(moment) / "results"
        if folder.exists():
            check_complete(folder)


def test_interrupted_by_a_signal(tmp_path) -> None:
    arguments = words("--batch-size", "1", limit=60)
    scan = subprocess.Popen(
        [sys.executable, "-m", "riskaudit", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert scan.stderr is not None
    assert scan.stderr.readline() == "audited 1 of 60 samples\n"
    scan.send_signal(signal.SIGINT)
    _, errors = scan.communicate(timeout=60)
    assert scan.returncode == 130
    assert "interrupted; no result" in errors.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_earlier_audit_is_replaced_as_a_whole(scan, tmp_path) -> None:
    scan(formats=FORMATS)
    before = {path.name for path in (tmp_path / "work" / "out").iterdir()}
    outcome = scan("--seed", "3", formats=("json", "md"))
    assert before == {*FILE_NAMES.values(), MANIFEST}
    assert {path.name for path in outcome.folder.iterdir()} == {"audit.json", "audit.md", MANIFEST}
    assert outcome.result.settings.seed == 3
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["out"]


def test_a_failed_audit_keeps_the_earlier_one(scan, tmp_path, monkeypatch) -> None:
    before = scan().document
    assert scan("--solver", "magic").code == 2
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = scan("--seed", "3")
    monkeypatch.setattr(os, "fsync", real)
    assert outcome.code == 2
    assert re.search("can't write to out: No space left", outcome.err.splitlines()[-1])
    assert outcome.document == before
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["out"]
