"""Fixtures of the command-line tests: a scan in an empty working folder, and whole scans shared by many tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scan_cases import FORMATS, Outcome, outcome_of, words

from riskaudit.cli.app import run


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command line in the empty folder tmp_path/work."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return outcome_of(code, printed.out, printed.err, work / "out")

    return call


@pytest.fixture
def scan(command: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Scan as `scan_cases.words` says; the results are in tmp_path/work/out."""
    return lambda *options, **sources: command(*words(*options, **sources))


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `scan` with nothing but its defaults; to be copied where they are changed."""
    folder = tmp_path_factory.mktemp("scanned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        assert run([*words("--quiet"), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A scan of a third of the demo's samples with noise, in every format."""
    folder = tmp_path_factory.mktemp("complete") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        code = run(words("--release", "gaussian:0.01", "--quiet", out=folder, formats=FORMATS, limit=20))
    return outcome_of(code, "", "", folder)
