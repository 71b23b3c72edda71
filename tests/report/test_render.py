"""What `render` promises whatever the format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from riskaudit.document.pdf import _timestamp
from riskaudit.errors import SettingsError
from riskaudit.report import FILE_NAMES, FORMATS, render
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult

ROOT = Path(__file__).parents[2]


def test_an_unknown_format_names_the_known_ones(audit):
    with pytest.raises(SettingsError, match=f"{', '.join(FORMATS)}, .*'docx'"):
        render(audit("one"), ("html", "docx"))


def test_files_carry_their_names_in_the_order_asked_for(audit):
    assert list(render(audit("one"), ("md", "csv", "md"))) == ["audit.md", "samples.csv"]
    assert set(FILE_NAMES) == set(FORMATS)


def test_json_is_the_result_itself(audit):
    result = recompute(audit("hostile"))[0]
    assert AuditResult.from_json(render(result, ("json",))["audit.json"]) == result


def test_sentences_have_the_spelling_asked_for_and_names_and_json_keep_theirs(audit):
    sample = audit("one").samples[0].model_copy(update={"id": "`arch`", "reason": "`arch` says it"})
    result = audit("one").model_copy(update={"warnings": ["`arch` names it"], "samples": [sample]})
    files = render(result, ("md", "html", "csv", "json"), spelling=lambda sentence: sentence.replace("`arch`", "XY"))
    for name in ("audit.md", "audit.html"):
        assert "XY names it" in files[name].decode(), name
    row = files["samples.csv"].decode().splitlines()[1]
    assert row.startswith("`arch`,")
    assert "XY says it" in row
    assert json.loads(files["audit.json"])["warnings"] == ["`arch` names it"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["hostile", "attacked-shown"])
def test_the_same_result_gives_the_same_bytes(audit, rendered, name):
    again = render(audit(name), FORMATS)
    assert {format_: again[FILE_NAMES[format_]] == rendered(name, format_) for format_ in FORMATS} == dict.fromkeys(
        FORMATS, True
    )


@pytest.mark.slow
def test_rendering_never_loads_torch(audit, tmp_path):
    path = tmp_path / "audit.json"
    path.write_text(audit("one").to_json(), encoding="utf-8")
    code = (
        "import sys; from riskaudit.results import AuditResult; from riskaudit.report import FORMATS, render\n"
        f"render(AuditResult.load({str(path)!r}), FORMATS)\n"
        "print(json.dumps([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import json; " + code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert json.loads(run.stdout) == []


def test_no_private_input_without_pictures(rendered):
    assert b"data:image" not in rendered("defended", "html")
    # Seven private ones, and two public digits as they are and at three errors.
    assert rendered("shown", "html").count(b"data:image/png") == 7 + 8


def test_a_demo_report_is_small(rendered):
    assert len(rendered("defended", "html")) < 400_000
    assert len(rendered("many", "html")) < 2_000_000


def test_a_broken_date_still_renders(audit):
    files = render(audit("one").model_copy(update={"created_at": "0001-01-01T00:00:00Z"}), ("pdf",))
    assert files["audit.pdf"].startswith(b"%PDF")


@pytest.mark.parametrize("date", ["", "yesterday", "0001-01-01T00:00:00Z", "1969-12-31"])
def test_what_is_no_date_counts_as_1970(date):
    assert _timestamp(date) == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_extreme_revealed_fractions_render(audit, value):
    result = audit("one")
    row = result.samples[0]
    proxies = row.proxies | {
        "revealed_fraction": row.proxies["revealed_fraction"].model_copy(
            update={"value": value, "low": None, "high": None}
        ),
        "gradient_norm": row.proxies["gradient_norm"].model_copy(update={"value": 0.0}),
        "posterior_rmse": row.proxies["posterior_rmse"].model_copy(update={"value": 0.0}),
    }
    extreme = result.model_copy(update={"samples": [row.model_copy(update={"proxies": proxies})]})
    files = render(extreme, ("html", "json", "csv", "md"))
    assert (b"no error left" in files["audit.html"]) == (value == 1.0)


def test_an_audit_without_samples_or_details_renders_in_every_format(audit):
    result = audit("one")
    bare = result.model_copy(
        update={
            "samples": [],
            "classes": [],
            "proxies": [],
            "noise_curve": [],
            "command": None,
            "versions": {},
            "fairness": type(result.fairness)(),
        }
    )
    assert b"Not assessed" in render(bare, FORMATS)["audit.html"]
