"""What is printed where, and what is loaded for it."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from scan_cases import CHECKPOINT, DATA, PROXY_IDS, loaded_modules, words

from riskaudit import __version__
from riskaudit.cli import console
from riskaudit.cli.console import progress
from riskaudit.report import FORMATS

HEAVY = ["torch", "scipy", "matplotlib", "numpy", "pydantic_core._not", "typst", "jinja2"]


def test_progress_is_plain_lines_on_stderr(scan) -> None:
    outcome = scan("--batch-size", "2", limit=5)
    lines = [line.split(",")[0] for line in outcome.err.splitlines() if not line.startswith("still at work")]
    assert lines == [f"audited {done} of 5 samples" for done in (2, 4, 5)]


def test_the_summary_is_on_stdout(scan) -> None:
    lines = scan("--release", "gaussian:0.01", "--mean", "0.1", "--std", "2").out.splitlines()
    assert lines[0].startswith("risk of 2 samples: ")
    assert lines[1].startswith("worst sample ")
    assert lines[-1] == "wrote out/audit.json"


def test_the_first_line_says_that_nothing_defends(scan) -> None:
    assert scan().out.startswith("undefended: assume full disclosure")


def test_quiet(scan) -> None:
    outcome = scan("--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    refused = scan("--quiet", "--limit", "0")
    assert refused.err.startswith("riskaudit: ")


def test_debug_shows_the_traceback_and_the_sentence(scan) -> None:
    outcome = scan("--debug", "--solver", "magic")
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert "SettingsError" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("riskaudit: expected --solver")


def test_a_bug_is_one_sentence_and_2(scan, monkeypatch) -> None:
    module = importlib.import_module("riskaudit.audit.audit")

    def broken(*_arguments, **_options):
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(module, "audit", broken)
    outcome = scan()
    assert outcome.code == 2
    assert re.fullmatch("riskaudit: unexpected ZeroDivisionError: one two; .*--debug.*\n", outcome.err)


def test_interrupted(scan, monkeypatch) -> None:
    module = importlib.import_module("riskaudit.audit.audit")

    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "audit", interrupted)
    outcome = scan()
    assert outcome.code == 130
    assert re.fullmatch("riskaudit: interrupted; .*no result.*\n", outcome.err)
    assert not outcome.folder.exists()


def test_version(command) -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"riskaudit {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["scan", "-h"], ["report", "--help"]], ids=str)
def test_help(command, arguments) -> None:
    outcome = command(*arguments)
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_help_names_every_option_of_a_scan(command, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = command("scan", "--help").out
    for option in ("--arch", "--release", "--limit", "--seed", "--solver", "--inverse", "--policy", "--config"):
        assert option in text
    assert "[tool.riskaudit]" in text
    assert "[policy]" in text


def test_nothing_given_prints_the_help(command) -> None:
    assert "Usage" in command().out


LISTED = {
    "architectures": ["lenet", "mlp", "resnet18", "torchvision:NAME"],
    "releases": ["ats:POLICY[:SEED]", "gradient", "clip:C", "soteria:Q[:LAYER]", "gaussian:STD", "laplace:B"],
    "model-defenses": ["precode[:DRAW[-LAST][:WEIGHT]]"],
    "proxies": PROXY_IDS,
    "checks": ["singleton-unit", "span"],
    "attacks": [
        "gauss-newton",
        "inverting-gradients",
        "dlg",
        "idlg",
        "gradinversion",
        "bayes",
        "analytic",
        "local",
        "imprint",
        "feature-matching",
        "method-of-moments",
    ],
    "metrics": ["rmse", "psnr", "ssim", "lpips", "feature_span"],
    "solvers": ["dense", "lanczos", "power"],
    "inverses": ["cg", "dense", "least-squares", "neumann"],
    "signs": ["imprint-layer", "silenced-class"],
    "losses": ["cross-entropy", "bce", "mse"],
    "checkpoints": [".safetensors", ".pt2"],
    "samples": [".npz", ".csv", ".parquet", "file.py:function"],
    "formats": list(FORMATS),
}


def test_list(command) -> None:
    lines = command("list").out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == list(LISTED)


@pytest.mark.parametrize("topic", LISTED)
def test_list_topic(command, topic) -> None:
    first, *lines = command("list", topic).out.splitlines()
    assert first == topic
    names = [line.strip().split("  ")[0] for line in lines]
    assert set(LISTED[topic]) <= set(names)
    assert all(len(line.strip().split("  ", 1)) == 2 for line in lines)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["scan", "--help"], ["study", "directions", "--help"], ["--version"]], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments) -> None:
    code = f"from riskaudit.cli.app import run\nassert run({arguments}) == 0"
    assert loaded_modules([*HEAVY, "riskaudit.results", "riskaudit.document"], code) == []


def test_refused_options_are_told_before_torch_is_loaded(tmp_path) -> None:
    arguments = words("--policy", str(tmp_path / "missing.toml"), out=tmp_path / "out")
    assert loaded_modules(["torch"], f"from riskaudit.cli.app import run\nassert run({arguments}) == 2") == []


def test_report_never_loads_torch(complete, tmp_path) -> None:
    audit = complete.folder / "audit.json"
    arguments = ["report", str(audit), "--out", str(tmp_path), *[f"--format={name}" for name in FORMATS]]
    assert loaded_modules(["torch"], f"from riskaudit.cli.app import run\nassert run({arguments}) == 0") == []


@pytest.mark.parametrize("program", [["-m", "riskaudit"], ["-c", "from riskaudit.cli import main; main()"]], ids=str)
def test_as_a_program(program, tmp_path) -> None:
    arguments = ["scan", str(CHECKPOINT), "--data", str(DATA), "--policy", "none.toml"]
    done = subprocess.run(
        [sys.executable, *program, *arguments], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("riskaudit: can't read none.toml")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_swallowed_ends_the_audit_at_the_next_batch() -> None:
    # A job in the background may ignore the signal from the start.
    before = signal.getsignal(signal.SIGINT)
    with progress(quiet=True) as update:
        update(1, 3)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            update(2, 3)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_log_says_what_goes_on_and_how_long_it_takes(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "_SILENCE", 0.1)
    with console.working(False, "writing the report"):
        time.sleep(0.25)
    assert capsys.readouterr().err.startswith("writing the report, 0.1 s so far\n")
    with console.progress(False, "scored", "policies") as update:
        time.sleep(0.25)
        update(1, 4)
        time.sleep(1.1)
        update(2, 4)
        update(4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("still at work: policies: none scored yet, 0.1")
    shown = [line for line in lines if line.startswith("scored")]
    assert shown[0] == "scored 1 of 4 policies"
    assert re.fullmatch(r"scored 2 of 4 policies, about [\d.]+ s left", shown[1])
    assert shown[2] == "scored 4 of 4 policies"


def test_a_log_says_what_to_do_where_the_first_takes_long(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "_SILENCE", 0.1)
    monkeypatch.setattr(console, "_PATIENCE", 0.2)
    with console.progress(False, advice="--budget ends it") as update:
        time.sleep(0.5)
        update(1, 2)
        time.sleep(0.5)
    advised = ["--budget ends it" in line for line in capsys.readouterr().err.splitlines()]
    assert advised[:2] == [False, True]
    assert not any(advised[2:])


def test_quiet_work_says_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "_SILENCE", 0.05)
    with console.working(True, "writing"), console.progress(True) as update:
        time.sleep(0.15)
        update(1, 2)
    assert capsys.readouterr().err == ""
