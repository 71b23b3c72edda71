"""Many audits as one folder of pages with an index."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from riskaudit.errors import ResultError
from riskaudit.report.bundle import Entry, audits_under, render_bundle
from riskaudit.results.facts import Facts


def test_the_index_links_every_audit_worst_first(audit):
    results = {"kept": audit("within"), "over": audit("exceeded"), "bare": audit("undefended")}
    steps = []
    files, contradictions = render_bundle(
        {name: lambda each=each: each for name, each in results.items()},
        ("html",),
        progress=lambda *at: steps.append(at),
    )
    assert set(files) == {"index.html", "kept.html", "over.html", "bare.html"}
    assert contradictions == []
    assert steps == [(1, 3), (2, 3), (3, 3)]
    page = files["index.html"].decode()
    assert re.findall(r'<a href="(\w+\.html)">', page) == ["over.html", "bare.html", "kept.html"]
    assert "data-sortable" in page
    assert not re.search(r"(src|href)=\"https?:", page)


def test_what_was_not_assessed_is_never_within_policy(audit):
    entry = Entry("a", Facts(audit("within")), ())
    assert entry.verdict[2].endswith("within policy")
    rows = [row.model_copy(update={"verdict": "not_assessed"}) for row in entry.facts.result.samples]
    for num_missing, words in ((1, "not confirmed"), (len(rows), "not assessed")):
        samples = [*rows[:num_missing], *entry.facts.result.samples[num_missing:]]
        other = replace(entry, facts=Facts(entry.facts.result.model_copy(update={"samples": samples})))
        assert other.verdict[2].endswith(words)


def test_names_come_from_folders(tmp_path):
    for folder in ("a/b", "c", "index"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "audit.json").touch()
    assert list(audits_under(tmp_path)) == ["a-b", "c", "index-audit"]
    (tmp_path / "a-b").mkdir()
    (tmp_path / "a-b" / "audit.json").touch()
    with pytest.raises(ResultError, match="would both be called a-b"):
        audits_under(tmp_path)
