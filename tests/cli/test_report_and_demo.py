"""``riskaudit report`` and ``riskaudit demo``."""

from __future__ import annotations

import re
import shlex

import pytest
from scan_cases import CHECKPOINT, DATA, FORMATS

from riskaudit.cli.options import in_options
from riskaudit.files import MANIFEST
from riskaudit.report import FILE_NAMES, render
from riskaudit.results import AuditResult


@pytest.mark.slow
def test_report_renders_beside_the_audit(command, complete, tmp_path) -> None:
    audit = tmp_path / "old" / "audit.json"
    audit.parent.mkdir()
    audit.write_bytes((complete.folder / "audit.json").read_bytes())
    outcome = command("report", audit)
    assert outcome.code == 0
    assert sorted(path.name for path in audit.parent.iterdir()) == ["audit.html", "audit.json", "audit.pdf", MANIFEST]


def test_report_takes_the_folder_of_an_audit(command, complete, tmp_path) -> None:
    outcome = command("report", complete.folder, "--baseline", complete.folder, "--out", tmp_path / "a", "--format=md")
    assert (outcome.code, [path.name for path in (tmp_path / "a").iterdir()]) == (0, ["audit.md", MANIFEST])
    (tmp_path / "other").mkdir()
    for names, advice in {(): "found none", ("b.json", "c.json"): "it holds b.json, c.json: name the file"}.items():
        for name in names:
            (tmp_path / "other" / name).write_text("{}")
        outcome = command("report", tmp_path / "other")
        assert outcome.code == 2
        assert "expected audit.json in the folder" in outcome.err
        assert advice in outcome.err


def test_report_gives_the_bytes_of_the_scan(command, complete, tmp_path) -> None:
    chosen = [f"--format={name}" for name in FORMATS]
    outcome = command("report", complete.folder / "audit.json", "--out", tmp_path / "again", *chosen, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    for name in FILE_NAMES.values():
        assert (tmp_path / "again" / name).read_bytes() == (complete.folder / name).read_bytes(), name


def test_documents_name_options_of_whatever_command(command, complete, tmp_path) -> None:
    audit, warning = tmp_path / "audit.json", "`arch=lenet` names it, `noise_stds` and `high=0.5` too"
    audit.write_text(complete.result.model_copy(update={"warnings": [warning]}).to_json(), encoding="utf-8")
    assert command("report", audit, "--format=md", "--format=html").code == 0
    assert "--arch lenet names it, --noise-std and --high-above 0.5 too" in (tmp_path / "audit.html").read_text("utf-8")
    assert "arch=lenet" not in (tmp_path / "audit.md").read_text("utf-8")


def test_report_with_a_baseline(command, complete, scan, tmp_path) -> None:
    quieter = scan("--release", "gaussian:0.1", limit=20)
    arguments = ["--baseline", complete.folder / "audit.json", "--format=md", "--out", tmp_path / "compared"]
    assert command("report", quieter.folder / "audit.json", *arguments).code == 0
    text = (tmp_path / "compared" / "audit.md").read_text(encoding="utf-8")
    assert "Changes since the baseline" in text
    assert "20 samples matched by id" in text


def test_scan_with_a_baseline(scan, complete) -> None:
    outcome = scan("--baseline", str(complete.folder / "audit.json"), formats=("md",))
    assert re.search("2 samples matched by id, .*18 no longer", (outcome.folder / "audit.md").read_text("utf-8"))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema_version": 99}', "\x00", '{"schema_version": "1"}'])
def test_report_of_something_else_is_refused(command, tmp_path, content) -> None:
    (tmp_path / "audit.json").write_text(content, encoding="utf-8")
    outcome = command("report", tmp_path / "audit.json")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "audit.json" in outcome.err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["audit.json"]


@pytest.mark.slow
def test_report_where_nothing_can_be_written(command, complete, tmp_path) -> None:
    (tmp_path / "file").touch()
    outcome = command("report", complete.folder / "audit.json", "--out", tmp_path / "file" / "sub")
    assert outcome.code == 2
    assert "choose another --out" in outcome.err


def test_demo(command, tmp_path) -> None:
    outcome = command("demo")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "work" / "riskaudit-demo"
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["riskaudit-demo"]
    assert (folder / CHECKPOINT.name).read_bytes() == CHECKPOINT.read_bytes()
    assert (folder / DATA.name).read_bytes() == DATA.read_bytes()
    assert sorted(path.name for path in (folder / "report").iterdir()) == sorted([*FILE_NAMES.values(), MANIFEST])
    result = AuditResult.load(folder / "report" / "audit.json")
    assert len(result.samples) == 60
    assert {row.status for row in result.samples} == {"exact"}
    assert len({row.verdict for row in result.samples}) > 1
    printed = shlex.split(outcome.out.splitlines()[0])
    assert printed[:2] == ["$", "riskaudit"]
    assert printed[2:6] == ["scan", f"riskaudit-demo/{CHECKPOINT.name}", "--data", f"riskaudit-demo/{DATA.name}"]
    assert result.release.spec == f"gradient,{printed[printed.index('--release') + 1]}"


def test_demo_where_nothing_can_be_written(command, tmp_path) -> None:
    (tmp_path / "file").touch()
    outcome = command("demo", "--out", tmp_path / "file" / "sub")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1


def test_the_result_in_memory_renders_as_the_file(complete) -> None:
    page = render(complete.result, ("html",), spelling=in_options)["audit.html"]
    assert page == (complete.folder / "audit.html").read_bytes()


@pytest.mark.slow
def test_a_bundle_has_an_index_and_every_audit(command, complete, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "audit.json").write_bytes((complete.folder / "audit.json").read_bytes())
    site = tmp_path / "site"
    outcome = command("report", tmp_path / "all", "--bundle", site, "--format=html")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in site.iterdir()) == ["a.html", "b.html", "index.html", MANIFEST]
    # An audit that can't be read leaves the earlier pages as they are.
    before = {path.name: path.read_bytes() for path in site.iterdir()}
    (tmp_path / "all" / "b" / "audit.json").write_text("{}")
    outcome = command("report", tmp_path / "all", "--bundle", site, "--format=html")
    assert outcome.code == 2
    assert "all/b" in outcome.err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in site.iterdir()} == before


def test_a_bundle_of_nothing_is_refused(command, complete, tmp_path) -> None:
    (tmp_path / "none").mkdir()
    for words in (
        ["none", "--bundle", "site"],
        [complete.folder / "audit.json", "--bundle", "site"],
        [complete.folder, "--bundle", "site", "--baseline", complete.folder],
        [complete.folder, "--bundle", "site", "--out", "other"],
    ):
        arguments = [tmp_path / word if word in ("none", "site", "other") else word for word in words]
        outcome = command("report", *arguments)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert not (tmp_path / "site").exists()
