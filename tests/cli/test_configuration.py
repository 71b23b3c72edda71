"""Options from files: where they are found, how they are spelt, and that the command line wins."""

from __future__ import annotations

import pytest
from scan_cases import CHECKPOINT, DATA, words

from riskaudit.files import MANIFEST

TOML = 'release = "clip:1.0,gaussian:0.5"\nseed = 7\n'
HOMES = {
    "riskaudit.toml": ("riskaudit.toml", TOML, []),
    "riskaudit.toml with tool table": ("riskaudit.toml", f"[tool.riskaudit]\n{TOML}", []),
    "pyproject.toml": ("pyproject.toml", f'[project]\nname = "x"\n[tool.riskaudit]\n{TOML}', []),
    "--config": ("elsewhere.toml", TOML, ["--config", "elsewhere.toml"]),
    "--config with tool table": ("else.toml", f"[tool.riskaudit]\n{TOML}", ["--config", "else.toml"]),
}


def write(tmp_path, text: str, name: str = "riskaudit.toml") -> None:
    (tmp_path / "work" / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("home", HOMES)
def test_home(scan, tmp_path, home) -> None:
    name, text, options = HOMES[home]
    write(tmp_path, text, name)
    result = scan(*options).result
    assert result.release.spec == "gradient,clip:1.0,gaussian:0.5"
    assert result.settings.seed == 7


@pytest.mark.parametrize("home", HOMES)
def test_the_command_line_wins(scan, tmp_path, home) -> None:
    name, text, options = HOMES[home]
    write(tmp_path, text, name)
    result = scan(*options, "--seed", "9").result
    assert (result.settings.seed, result.release.noise.std) == (9, 0.5)


def test_riskaudit_toml_comes_before_pyproject(scan, tmp_path) -> None:
    write(tmp_path, "seed = 1")
    write(tmp_path, "[tool.riskaudit]\nseed = 2", "pyproject.toml")
    assert scan().result.settings.seed == 1


def test_a_given_file_replaces_the_found_one(scan, tmp_path) -> None:
    write(tmp_path, "seed = 1\nprior-std = 2.0")
    write(tmp_path, "seed = 2", "own.toml")
    result = scan("--config", "own.toml").result
    assert result.settings.seed == 2
    assert result.prior.std != 2.0


def test_pyproject_without_a_table_is_passed_over(scan, tmp_path) -> None:
    write(tmp_path, '[project]\nname = "x"\n[tool.other]\nseed = "no"', "pyproject.toml")
    assert scan().code == 0


def test_given_pyproject_without_a_table_is_refused(scan, tmp_path) -> None:
    write(tmp_path, '[project]\nname = "x"', "pyproject.toml")
    outcome = scan("--config", "pyproject.toml")
    assert outcome.code == 2
    assert "[tool.riskaudit]" in outcome.err


@pytest.mark.parametrize("key", ["high-above", "high_above"])
def test_keys_are_option_names_with_either_dash(scan, tmp_path, key) -> None:
    write(tmp_path, f"{key} = 0.75")
    assert scan().result.settings.thresholds.high == 0.75


@pytest.mark.parametrize("key", ["high", "medium", "help", "version", "checkpoint", "config", "Seed"])
def test_names_that_are_no_options_are_refused(scan, tmp_path, key) -> None:
    write(tmp_path, f"{key} = 1")
    outcome = scan()
    assert outcome.code == 2
    assert f"found '{key}'" in outcome.err
    assert "riskaudit.toml" in outcome.err


def test_formats_as_a_list(command, tmp_path) -> None:
    write(tmp_path, 'format = ["csv", "md"]\nlimit = 1')
    outcome = command(*words(formats=(), limit=None))
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["audit.md", MANIFEST, "samples.csv"]


def test_one_format_as_a_string(command, tmp_path) -> None:
    write(tmp_path, 'format = "csv"\nlimit = 1')
    outcome = command(*words(formats=(), limit=None))
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in outcome.folder.iterdir()) == [MANIFEST, "samples.csv"]


def test_formats_on_the_command_line_replace_the_list(command, tmp_path) -> None:
    write(tmp_path, 'format = ["csv", "md"]')
    outcome = command(*words(formats=("json",), limit=1))
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["audit.json", MANIFEST]


def test_everything_but_the_checkpoint(command, tmp_path) -> None:
    write(tmp_path, f'data = "{DATA}"\nout = "here"\nlimit = 1\nquiet = true\nformat = ["json"]')
    outcome = command("scan", CHECKPOINT)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert (tmp_path / "work" / "here" / "audit.json").exists()


def test_the_command_on_record_has_the_files_options(scan, tmp_path) -> None:
    write(tmp_path, TOML)
    command = scan().result.command
    assert "--release clip:1.0,gaussian:0.5" in command
    assert "--seed 7" in command
    assert str(DATA.parent) not in command


def test_a_broken_file_is_refused_though_the_command_line_says_all(scan, tmp_path) -> None:
    write(tmp_path, "seed = ")
    assert scan("--seed", "1").code == 2


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\nriskaudit = 3"])
def test_a_table_that_is_none(scan, tmp_path, text) -> None:
    write(tmp_path, text)
    outcome = scan()
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1


RAN = 'open("RAN", "w").write("ran")\n'
CODE = [
    'arch = "code.py:net"', 'data = "code.py:data"', 'loss = "code.py:loss"', 'arch = ["code.py:net"]',
    'arch = "/abs/folder/code.py:net"',
]  # fmt: skip


@pytest.mark.parametrize("home", ["riskaudit.toml", "pyproject.toml"])
@pytest.mark.parametrize("line", CODE)
def test_a_file_that_was_only_found_names_no_code(scan, command, tmp_path, line, home) -> None:
    write(tmp_path, RAN, "code.py")
    write(tmp_path, f"[tool.riskaudit]\n{line}\n", home)
    outcome = scan()
    assert outcome.code == 2
    assert "names code" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "work" / "RAN").exists()


def test_the_advice_leads_to_an_audit(scan, tmp_path) -> None:
    loss = "import torch\ndef loss(outputs, targets):\n    return torch.nn.functional.cross_entropy(outputs, targets)\n"
    write(tmp_path, loss, "code.py")
    write(tmp_path, 'loss = "code.py:loss"')
    assert "--config riskaudit.toml" in scan().err
    assert scan("--config", "riskaudit.toml").result.settings.loss == "code.py:loss"
    write(tmp_path, "seed = 1")
    assert scan("--loss", "code.py:loss").result.settings.loss == "code.py:loss"


@pytest.mark.slow
def test_a_matplotlibrc_in_the_folder_changes_nothing(scan, tmp_path, monkeypatch) -> None:
    from scan_cases import python

    plain = scan(formats=("html",)).folder / "audit.html"
    before = plain.read_bytes().count(b"<svg")
    write(tmp_path, "text.usetex: True\nlines.linewidth: 40\n", "matplotlibrc")
    code = "import sys; from riskaudit.cli.app import run; sys.exit(run(sys.argv[1:]))"
    done = python(code, *words("-q", out="again", formats=("html",)), cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "work" / "again" / "audit.html").read_bytes()
    assert text.count(b"<svg") == before
    assert b"stroke-width: 40" not in text
