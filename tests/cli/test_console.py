"""What is printed where, and what is loaded for it."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

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


class Clock:
    """Time that passes only while the thread that says that work goes on waits, and only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting, self._turns, self._is_over = threading.Event(), threading.Semaphore(0), False

    def wait(self, seconds: float) -> bool:
        """As of `threading.Event`."""
        self._waiting.set()
        self._turns.acquire()
        self.now += 0.0 if self._is_over else seconds
        return self._is_over

    def set(self) -> None:
        """Likewise."""
        self._is_over = True
        self._turns.release()

    def skip(self, times: int) -> None:
        """So many waits pass, and what comes after each is done."""
        for _ in range(times):
            self._waiting.wait()
            self._waiting.clear()
            self._turns.release()
        self._waiting.wait()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The time of the one piece of work that a test shows."""
    clock = Clock()
    threads = {name: getattr(threading, name) for name in ("Thread", "current_thread", "main_thread")}
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(console, "threading", SimpleNamespace(Event=lambda: clock, **threads))
    return clock


def test_a_log_says_that_work_goes_on(clock, capsys) -> None:
    with console.working(False, "writing the report"):
        clock.skip(2)
    assert capsys.readouterr().err == "writing the report, 5 s so far\nwriting the report, 15 s so far\n"


def test_a_log_says_what_goes_on_and_how_long_it_takes(clock, capsys) -> None:
    with console.progress(False, "scored", "policies") as update:
        clock.skip(1)
        clock.now = 6.0
        update(1, 4)
        clock.now = 12.0
        update(2, 4)
        update(4, 4)
    assert capsys.readouterr().err.splitlines() == [
        "still at work: policies: none scored yet, 5 s so far",
        "scored 1 of 4 policies",
        "scored 2 of 4 policies, about 12 s left",
        "scored 4 of 4 policies",
    ]


def test_a_log_foretells_by_what_is_under_way(clock, capsys) -> None:
    with console.progress(False, "scored", "policies") as update:
        update(0, 4)
        clock.now = 3.0
        update.show_under_way(1.5)
        clock.skip(1)
        update.show_under_way(3.9)
        update(4, 4)
    assert capsys.readouterr().err.splitlines() == [
        "still at work: scored 0 of 4 policies, at most about 13 s left, 8 s so far",
        "scored 4 of 4 policies",
    ]


def test_a_log_says_what_to_do_where_the_first_takes_long(clock, capsys) -> None:
    with console.progress(False, advice="--budget ends it") as update:
        # After 5, 15 and 35 seconds.
        clock.skip(3)
        update(1, 2)
        clock.skip(2)
    lines = capsys.readouterr().err.splitlines()
    assert ["--budget ends it" in line for line in lines if "still at work" in line][:3] == [False, False, True]
    assert "--budget" not in "".join(lines[3:])
    assert "still at work: audited 1 of 2 samples" in lines[-1]


def test_quiet_work_says_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "_SILENCE", 0.05)
    with console.working(True, "writing"), console.progress(True) as update:
        time.sleep(0.15)
        update(1, 2)
    assert capsys.readouterr().err == ""
