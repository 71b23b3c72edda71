"""CSV and Markdown: nothing runs, nothing renders, numbers stay numbers."""

from __future__ import annotations

import csv
import io
import re

import pytest
from report_cases import build
from report_reading import Report

from riskaudit.document.markdown import escape, to_markdown
from riskaudit.report import render
from riskaudit.report.build import build_document
from riskaudit.report.csv import guarded
from riskaudit.results import columns
from riskaudit.results.facts import Facts


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_csv_has_every_sample_and_status(audit, rendered):
    rows = rows_of(rendered("failed", "csv"))
    assert [row["id"] for row in rows] == [row.id for row in audit("failed").samples]
    assert rows[-1]["status"] == "failed"
    assert rows[-1]["revealed_fraction_value"] == ""
    assert rows[-1]["revealed_fraction_status"] == "failed"
    assert rows[1]["i2f_status"] == "bracketed"
    assert float(rows[2]["revealed_fraction_value"]) == audit("failed").samples[2].proxies["revealed_fraction"].value


def test_csv_text_never_starts_a_formula(rendered):
    for row in rows_of(rendered("hostile", "csv")):
        for name, value in row.items():
            if value.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(value)
                assert name not in {"id", "class", "reason"}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2+3", "@SUM(1)", " =1", "\t=1", "|x"])
def test_guard(text):
    assert guarded(text) == "'" + text


def test_guard_leaves_plain_text():
    assert guarded("a-b = c") == "a-b = c"


def test_markdown_summary(rendered):
    text = rendered("exceeded", "md").decode().replace("\u00a0", " ")
    assert text.startswith("# Gradient audit of lenet.pt")
    for words in (
        "## Policy exceeded",
        "at most 0.5 of a sample revealed",
        "**Recommended noise.**",
        "the first 5 of 16 rows",
    ):
        assert words in text
    assert len(text) < 6000


def test_markdown_undefended_first_line(rendered):
    first = rendered("undefended", "md").decode().splitlines()[0]
    assert "undefended: assume full disclosure" in first


def test_markdown_has_no_live_markup(rendered):
    text = rendered("hostile", "md").decode()
    text = re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "://" not in text
    assert not re.search(r"@\w", text)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {9}


def test_a_fence_can_t_be_closed_from_inside(audit):
    result = audit("one")
    command = "riskaudit scan lenet.pt --data 'a```\n# live\n```'"
    text = render(result.model_copy(update={"command": command}), ("md",))["audit.md"].decode()
    assert "````\nriskaudit scan" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain 0.5 text-with-dash", "plain 0.5 text-with-dash"),
        ("*a* _b_ `c` [d](e)", "\\*a\\* \\_b\\_ \\`c\\` \\[d\\](e)"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("- item", "\\- item"),
        ("1. item", "1\u200b. item"),
        ("# head", "\\# head"),
        ("http://x www.y @z", "http&#58;//x www&#46;y @\u200bz"),
        ("two\nlines", "two lines"),
    ],
)
def test_escape(text, escaped):
    assert escape(text) == escaped


@pytest.mark.parametrize(("num_samples", "listed"), [(24, 24), (25, 6)], ids=["at the limit", "beyond it"])
def test_a_large_audit_lists_fewer_samples(monkeypatch, num_samples, listed):
    monkeypatch.setattr(columns, "MANY", 24)
    monkeypatch.setattr(columns, "SHOWN", 6)
    result = build(num_samples)
    document = build_document(result)
    table = Report(document).tables["samples"]
    assert (len(table.rows), table.left_out) == (listed, num_samples - listed)
    assert [row[0].text for row in table.rows] == [row.id for row in list(Facts(result).ranked)[:listed]]
    assert ("19 are not listed" in table.note) == (listed == 6)
    assert f"the first 5 of {num_samples} rows; {num_samples - 5} are not listed" in to_markdown(document).decode()
