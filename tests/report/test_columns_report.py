"""Reports of tables: columns by their own numbers, the most exposed first; no word and no mean of the data."""

from __future__ import annotations

import csv
import io
import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from report_reading import Report
from table_cases import network, samples_of

import riskaudit
from riskaudit.document.plots import DotPlot
from riskaudit.report import render
from riskaudit.results import AuditResult, Estimate

RELEASE = "gaussian:0.5"


@lru_cache
def audited(release: str = RELEASE) -> AuditResult:
    with TemporaryDirectory() as folder:
        samples = samples_of(Path(folder), 6)
    return riskaudit.audit(network(14), samples, release=release, checks=False)


def table_of(report: Report, name: str) -> dict[str, list[str]]:
    table = report.tables[name]
    return {row[0].text: [cell.text for cell in row] for row in table.rows}


def test_columns_stand_with_their_units_worst_first() -> None:
    result = audited()
    first = result.data.encoding.columns[0].model_copy(update={"unit": "mm"})
    encoding = result.data.encoding.model_copy(update={"columns": [first, *result.data.encoding.columns[1:]]})
    result = result.model_copy(update={"data": result.data.model_copy(update={"encoding": encoding})})
    report = Report.of(result)
    rows = report.tables["columns"].rows
    highs = [row[4].sort for row in rows]
    assert highs == sorted(highs, reverse=True)
    assert {row[0].text for row in rows} == set(result.samples[0].columns)
    risks = [row.columns["mean radius"] for row in result.samples]
    worst = max(risks, key=lambda risk: risk.revealed.value)
    shown = table_of(report, "columns")["mean radius"]
    assert shown[1] == "number"
    assert shown[2] == f"{worst.estimate.value:.3g}\u00a0mm"
    assert shown[3] == f"{worst.guess:.3g}\u00a0mm"
    category = table_of(report, "columns")["mean symmetry"]
    assert category[1] == "category"
    assert category[2].startswith("right with ")
    assert category[3] == "right with 20\u00a0%"
    figure = report.figures["column-exposure"]
    assert isinstance(figure.plot, DotPlot)
    assert [dot.label for dot in figure.plot.dots] == [row[0].text for row in rows]
    assert f"0 of {len(rows)} columns are revealed beyond 50\u00a0%" in figure.title


def test_the_verdict_names_the_column() -> None:
    result = audited()
    report = Report.of(result)
    text = report.text_of("verdict")
    name = report.tables["columns"].rows[0][0].text
    assert f"the most exposed is {name}" in text
    assert name in report.text_of("governance")
    sample = table_of(report, "samples")[result.samples[0].id]
    assert any(each.split(",")[0] in result.samples[0].columns for each in sample)
    assert "cancer.toml" in report.text_of("provenance")
    assert "mean concavity (category, 4 inputs, missing values: a category of its own)" in report.text_of("provenance")


def test_findings_for_machines_name_the_column() -> None:
    log = json.loads(render(audited("gaussian:0.001"), ["sarif"])["audit.sarif"])
    texts = [result["message"]["text"] for result in log["runs"][0]["results"]]
    assert any("of its column" in text and "at high risk" in text for text in texts)


def test_what_is_not_assessed_comes_first_and_is_never_safe() -> None:
    report = Report.of(audited("laplace:0.5"))
    rows = report.tables["columns"].rows
    assert rows[0][2].text == "not assessed"
    assert "not assessed" in report.figures["column-exposure"].title
    assert "Gaussian noise" in report.tables["columns"].note
    changed = audited()
    unknown = Estimate(value=None, status="not_applicable")
    first = changed.samples[0]
    lost = {name: risk.model_copy(update={"revealed": unknown}) for name, risk in first.columns.items()}
    changed = changed.model_copy(update={"samples": [first.model_copy(update={"columns": lost}), *changed.samples[1:]]})
    table = table_of(Report.of(changed), "samples")
    assert "○ not assessed" in table[first.id]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", [RELEASE, "gradient"])
def test_every_format_renders_without_words_of_the_data(release: str) -> None:
    files = render(audited(release), ["html", "md", "csv", "json", "sarif"])
    for name, content in files.items():
        text = content.decode()
        assert not any(word in text for word in ("tiny", "huge")), name
    lines = list(csv.DictReader(io.StringIO(files["samples.csv"].decode())))
    for line, row in zip(lines, audited(release).samples, strict=True):
        risk = row.columns["is large"]
        assert float(line["column is large value"]) == risk.estimate.value
        assert float(line["column is large revealed"]) == risk.revealed.value
        assert line["column is large status"] == "exact"


def test_audits_of_other_inputs_have_no_columns(report) -> None:
    plain = report("defended")
    assert not {"columns", "column-exposure"} & set(plain.tables)
