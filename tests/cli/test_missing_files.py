"""A path where nothing is gets its one sentence at once, before torch is loaded, from every command that reads it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from scan_cases import CHECKPOINT, DATA

# All of them in one process.
pytestmark = pytest.mark.sampled(1000)

SCAN = ("scan", str(CHECKPOINT), "--data", str(DATA))
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "scan": (("scan", "no.pt", "--data", "no.npz"), "can't find no.pt; check the path"),
    "scan-data": (("scan", str(CHECKPOINT), "--data", "no.npz"), "can't find no.npz; check the path"),
    "scan-folder": (("scan", "no/folder", "--data", "no.txt"), "can't find no/folder; check the path"),
    "scan-function": (
        ("scan", str(CHECKPOINT), "--data", "no.py:samples"),
        "can't find no.py of 'no.py:samples'; check the path",
    ),
    "arch": ((*SCAN, "--arch", "no.py:net"), "can't find no.py of 'no.py:net'; check the path"),
    "loss": ((*SCAN, "--loss", "no.py:loss"), "can't find no.py of 'no.py:loss'; check the path"),
    "prior": ((*SCAN, "--prior", "no.safetensors"), "can't find no.safetensors; check the path"),
    "base": ((*SCAN, "--base", "no"), "can't find no; check the path"),
    "encoding": ((*SCAN, "--encoding", "no.toml"), "can't read the encoding no.toml: No such file or directory"),
    "calibration": ((*SCAN, "--calibration", "no.json"), "can't read no.json: No such file or directory"),
    "policy": ((*SCAN, "--policy", "no.toml"), "can't read no.toml: No such file or directory"),
    "baseline": ((*SCAN, "--baseline", "no.json"), "can't read no.json: No such file or directory"),
    "verify": (("verify", "no.pt", "--data", str(DATA)), "can't find no.pt; check the path"),
    "calibrate": (("calibrate", "no.pt", "--data", str(DATA), "--out", "c.json"), "can't find no.pt; check the path"),
    "inspect": (
        ("inspect", str(CHECKPOINT), "--data", str(DATA), "--previous", "no.pt"),
        "can't find no.pt; check the path",
    ),
    "attest": (("attest", "no.pt", "--declared", "gaussian:1"), "can't find no.pt; check the path"),
    "prior-fit": (("prior", "fit", "no.npz", "--out", "p.safetensors"), "can't find no.npz; check the path"),
    "encoding-infer": (("encoding", "infer", "no.csv", "--out", "e.toml"), "can't find no.csv; check the path"),
    "ats": (("ats", "search", "no.pt", "--data", str(DATA)), "can't find no.pt; check the path"),
    "run": (("run", "create", "r", str(CHECKPOINT), "no.pt", "--data", str(DATA)), "can't find no.pt; check the path"),
    "guard-check": (("guard-check", "no.toml"), "can't read no.toml: No such file or directory"),
    "guard-check-table": (("guard-check", "policy.toml"), "can't find no.pt; check the path"),
    "fairness": (
        ("study", "fairness", str(CHECKPOINT), "--data", str(DATA), "--group-by", "no.csv"),
        "can't find no.csv; check the path",
    ),
    "training": (("study", "training", "no.pt", "--data", str(DATA)), "can't find no.pt; check the path"),
    "training-data": (
        ("study", "training", str(CHECKPOINT), "--data", str(DATA), "--train", "no.npz"),
        "can't find no.npz; check the path",
    ),
    "report": (("report", "no.json"), "can't read no.json: No such file or directory"),
}
PROGRAM = """
import contextlib, io, json, sys
from riskaudit.cli.app import run
for name, words in json.load(sys.stdin).items():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(words)
    print(json.dumps([name, code, said.getvalue(), "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, list[object]]:
    """Exit code, message and whether torch was loaded by then, of all cases one after the other in one process."""
    folder = tmp_path_factory.mktemp("missing")
    (folder / "policy.toml").write_text(
        f'[policy]\nmax_revealed = 0.5\n[guard]\ncheckpoint = "no.pt"\ndata = "{DATA}"\n', encoding="utf-8"
    )
    words = json.dumps({name: arguments for name, (arguments, _) in CASES.items()})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=words, capture_output=True, text=True, check=True, cwd=folder
    )
    rows = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert sorted(path.name for path in folder.iterdir()) == ["policy.toml"]
    return {name: found for name, *found in rows}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_torch_is_loaded(refusals, case) -> None:
    assert refusals[case] == [2, f"riskaudit: {CASES[case][1]}\n", False]
