"""Audits with an attack study: control first, corridor, agreement, and nothing shown that wasn't asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter

import pytest
from attack_cases import ATTACKS, ORACLE, attack_study, raw_study, with_attacks, with_raw_study, without_noise
from report_cases import _png, build
from report_reading import Report, words
from test_html_report import Page

from riskaudit.document.blocks import Bullets, Callout, Gallery, Paragraph, Snippet
from riskaudit.document.plots import CorridorPlot, PanelPlot
from riskaudit.formatting import correlation
from riskaudit.report import render
from riskaudit.report.sections.protect import Recommendation
from riskaudit.results.facts import Facts
from riskaudit.studies.verify.record import STRONGEST
from riskaudit.studies.verify.section.reading import UNFINISHED, AttackStudy, read_attack_study


@pytest.fixture
def page(rendered):
    return lambda name: Page(rendered(name, "html"))


def attacks_fact(report: Report) -> str:
    """What the verdict's box says of attacks."""
    return words(dict(report.verdict.facts)["Attacks"])


def calibration_of(report: Report) -> Callout:
    (callout,) = [box for box in report.blocks(Callout, "evidence") if "alibrated" in box.title]
    return callout


def knowledge_of(report: Report) -> str:
    (paragraph,) = [each for each in report.blocks(Paragraph, "evidence") if "Labels:" in each.text]
    return paragraph.text


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "status", "tone"),
    [
        ("attacked", "passed", "low"),
        ("control-skipped", "skipped", "unknown"),
        ("control-failed", "failed", "high"),
    ],
)
def test_the_control_is_the_first_line_of_the_evidence(report, name, status, tone):
    first = report(name).section("evidence")[0]
    assert isinstance(first, Callout)
    assert first.title.startswith(f"Positive control {status}")
    assert (first.tone, first.brief) == (tone, True)
    assert ("gauss-newton" in words(first)) == (status != "skipped")
    assert ("proves nothing" in words(first)) == (status == "skipped")


def test_a_failed_control_means_broken_attacks_and_not_safe_data(report, rendered):
    failed = report("control-failed")
    control = failed.section("evidence")[0]
    assert "attacks are broken" in control.title
    assert re.search(r"not mean .*data is safe", words(control))
    assert "failed (the attacks are broken)" in attacks_fact(failed)
    assert "attacks say nothing" in attacks_fact(failed)
    assert "attacks say nothing" in failed.figures["corridor"].title
    assert "attacks are broken" in rendered("control-failed", "md").decode()
    # No sentence draws comfort from what they failed to do.
    for comfort in ("the attacks work.", "gauss-newton works", "fell short of", "beat the prior-only guess"):
        assert comfort not in failed.text


def test_what_the_attacks_knew(report):
    text = knowledge_of(report("attacked"))
    for item in ("Labels: known.", "Range of the inputs: not known.", "10,000 images."):
        assert item in text


@pytest.mark.parametrize("name", ["attacked", "defended"])
def test_no_calibration_is_stated(report, name):
    assert "not calibrated against attacks" in attacks_fact(report(name))
    callout = calibration_of(report(name))
    assert (callout.title, callout.tone) == ("Not calibrated against attacks", "unknown")


@pytest.mark.slow
def test_a_calibration_is_stated_with_its_factors_and_its_source(report):
    calibrated = report("calibrated")
    assert "not calibrated" not in calibrated.text.lower()
    text = words(calibration_of(calibrated))
    numbers = ("0.880 and 1.40 times", "probability of 90 %", "the 60 of", "std 0.01")
    for item in (*numbers, "exchangeable", "mnist-calibration.npz", "b1b1b1b1b1b1"):
        assert item in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.8, None, "at least 0.800 times"), (None, 1.4, "at most 1.40 times"), (None, None, "not bounded")],
)
def test_a_calibration_of_too_few_samples(audit, low, high, expected):
    result = audit("calibrated")
    one_sided = result.calibration.model_copy(update={"low_factor": low, "high_factor": high})
    text = words(calibration_of(Report.of(result.model_copy(update={"calibration": one_sided}))))
    assert expected in text
    assert "too few samples" in text


@pytest.mark.slow
def test_the_corridor_is_that_of_the_records(audit, report):
    study = attack_study(audit("attacked"))
    figure = report("attacked").figures["corridor"]
    assert isinstance(figure.plot, CorridorPlot)
    own = {one.sample_id: one.proxies for one in study.predictions if one.noise_std == 0.01}
    rows = [row for row in study.attacks if row.noise_std == 0.01 and not row.oracle_start]
    for drawn in figure.plot.corridors:
        errors = [row.metrics["rmse"] for row in rows if row.sample_id == drawn.label]
        assert drawn.attacked == min(error for error in errors if error is not None)
        assert drawn.low == own[drawn.label]["predicted_rmse"].low
        assert drawn.predicted == own[drawn.label]["map_rmse"].value
        assert drawn.prior_only is not None
    predicted = [drawn.predicted for drawn in figure.plot.corridors]
    assert predicted == sorted(predicted)
    near = sum(drawn.attacked <= 1.1 * drawn.predicted for drawn in figure.plot.corridors)
    assert f"on {near} of 24 samples" in figure.title


@pytest.mark.slow
def test_only_the_most_exposed_samples_are_drawn():
    figure = Report.of(with_attacks(build(60))).figures["corridor"]
    assert len(figure.plot.corridors) == 40
    assert len(figure.table.rows) == 60
    assert "40 most exposed of 60" in figure.caption


def test_the_lower_end_is_the_strongest_claim(audit):
    def title(result):
        return words(Report.of(result).figures["corridor"].plot.titles[0])

    assert title(audit("calibrated")).startswith("calibrated lower end")
    assert title(audit("attacked")).endswith("90 % predictive interval")
    result = audit("attacked")
    study = raw_study(result, "verify")
    for one in study["predictions"]:
        del one["proxies"]["predicted_rmse"]
    assert title(with_raw_study(result, "verify", study)) == "lower end of MAP RMSE"
    for one in study["predictions"]:
        one["proxies"]["map_rmse"] |= {"low": None, "high": None}
    assert title(with_raw_study(result, "verify", study)) == "I2F lower bound"


def test_the_oracle_start_is_shown_apart_and_labelled(report):
    found = report("attacked").tables
    for name in ("agreement", "agreement-attacks", "agreement-all", "tightness"):
        assert not any(ORACLE in cell.text for row in found[name].rows for cell in row), name
        assert not any(ORACLE in column.title for column in found[name].columns), name
    assert all(f"{ORACLE} (oracle start)" == row[1].text for row in found["oracle-tightness"].rows)
    assert "not an attack" in found["oracle-tightness"].caption
    (settings,) = [block for block in report("attacked").blocks(Bullets, "evidence") if "ettings" in block.lead]
    text = report("attacked").text.replace(words(settings), "").replace("\u200b", "")
    assert not re.search(rf"{ORACLE}(?! \(oracle start\))", text)


def test_a_correlation_of_the_wrong_sign_is_marked(audit, report):
    facts = read_attack_study(Facts(audit("attacked"))).facts
    rows = {
        (f"{row.noise_std:g}", facts.title(row.proxy)): row
        for row in attack_study(audit("attacked")).agreement
        if row.attack == STRONGEST and row.metric == "psnr"
    }
    seen = Counter()
    for name in ("agreement", "agreement-others"):
        for cells in report("attacked").tables[name].rows:
            row = rows[cells[0].text, cells[1].text]
            # More risk should mean a larger PSNR.
            contrary = (row.spearman > 0) != (facts.riskier(row.proxy) == "higher")
            text = cells[3].text
            assert ("wrong sign" in text) == contrary, text
            assert ("wrong sign?" in text) == (contrary and row.low <= 0 <= row.high)
            assert (cells[3].tone == "high") == (contrary and not row.low <= 0 <= row.high)
            seen[contrary] += 1
    assert seen[True] > 0 < seen[False]


def test_agreement_tables_hold_the_records(audit, report):
    found, study = report("attacked").tables, attack_study(audit("attacked"))
    table = found["agreement"]
    assert [column.title for column in table.columns] == ["Noise std", "Proxy", "RMSE", "PSNR", "SSIM", "Feature MSE"]
    assert len(table.rows) == 2 * 9
    assert {row[1].text for row in found["agreement-others"].rows} == {"Revealed fraction"}
    assert found["agreement-others"].folded
    row = next(
        row
        for row in study.agreement
        if (row.noise_std, row.attack, row.metric, row.proxy) == (0.1, "strongest", "ssim", "map_rmse")
    )
    cell = next(cells for cells in table.rows if (cells[0].text, cells[1].text) == ("0.1", "MAP RMSE"))[4]
    assert cell.sort == row.spearman
    assert cell.detail == f"{correlation(row.low)} to {correlation(row.high)}"
    assert [column.title for column in found["agreement-attacks"].columns[2:]] == [n for n in ATTACKS if n != ORACLE]
    assert all(found[name].folded for name in ("agreement-attacks", "kendall", "agreement-all"))
    assert len(found["agreement-all"].rows) == 2 * 10 * 3


def test_calibrated_columns_are_there_only_with_a_calibration(report):
    def titles(name):
        return {column.title for column in report(name).tables["tightness"].columns}

    assert titles("calibrated") - titles("attacked") == {"Not below, calibrated", "Inside, calibrated"}


def test_panels_per_noise_level(report):
    plots = {name: figure.plot for name, figure in report("attacked").figures.items()}
    for name in ("attacked", "reliability"):
        assert isinstance(plots[name], PanelPlot)
        assert len(plots[name].panels) == 2
    assert all(len(panel.points) == len(panel.apart) == 24 for panel in plots["attacked"].panels)


def test_gaps_name_what_the_attacks_leave_open(report):
    def gaps(name):
        (bullets,) = [block for block in report(name).blocks(Bullets, "evidence") if "Not tested" in block.lead]
        return words(bullets)

    assert "stronger" in gaps("attacked")
    assert "positive control" not in gaps("attacked")
    assert "positive control" in gaps("defended")
    assert "positive control failed" in gaps("control-failed")


def test_no_picture_without_show_samples(report, rendered, page, audit):
    for name in ("attacked", "control-failed", "calibrated", "attacked-hostile"):
        assert not report(name).blocks(Gallery)
    assert b"data:image" not in rendered("attacked-hostile", "html")
    shown = page("attacked-shown")
    assert re.match("Private inputs are shown: .* 6 private inputs .* 48 reconstructions", shown.texts[0])
    assert rendered("attacked-shown", "html").count(b"data:image/png") == 8 + 6 + 2 * (6 + 6 * 4)
    result = audit("attacked-shown")
    samples = [row.model_copy(update={"image_png": None}) for row in result.samples]
    (banner,) = Report.of(result.model_copy(update={"samples": samples})).document.banners
    assert re.match("Private inputs are shown: .* 48 reconstructions", banner)
    assert "section 4" not in banner


def test_pictures_say_what_they_are(page):
    alts = [attributes["alt"] for tag, attributes in page("attacked-shown").tags if tag == "img"]
    assert any(alt.startswith("Private input of sample") for alt in alts)
    assert any(alt.startswith(f"Reconstruction by {ORACLE} (oracle start) of sample") for alt in alts)


@pytest.mark.slow
def test_hostile_strings_stay_text(page, rendered, hostile_strings):
    hostile = page("attacked-hostile")
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in page("attacked").tags}
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert [tag for tag, _ in hostile.tags].count("script") == 1
    for text in hostile_strings[:3]:
        assert " ".join(text.split()) in hostile.text or text[:20] in hostile.text
    for action in (b"/URI", b"/JavaScript", b"/Launch"):
        assert action not in rendered("attacked-hostile", "pdf")
    markdown = re.sub(r"^(`{3,})\n.*?^\1$", "", rendered("attacked-hostile", "md").decode(), flags=re.DOTALL | re.M)
    assert "<" not in markdown
    assert "://" not in markdown


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ({}, "control: Field required"),
        ([1, 2], "studies.verify: Input should be"),
        ("text", "studies.verify: Input should be"),
        ({"control": {"status": "<b>"}}, "control.status: Input should be"),
    ],
    ids=["empty", "list", "text", "wrong"],
)
def test_a_malformed_study_is_one_line(audit, study, expected):
    result = with_raw_study(audit("one"), "verify", study)
    report = Report.of(result)
    (unreadable,) = [box for box in report.blocks(Callout, "evidence") if "audit.json" in box.title]
    assert (len(unreadable.body), unreadable.tone) == (1, "unknown")
    assert unreadable.body[0].startswith(f"Verify: {expected}")
    assert calibration_of(report).tone == "unknown"
    assert "corridor" not in report.figures


def test_a_study_without_results_renders(audit):
    result = audit("attacked")
    bare = {
        key: [] if isinstance(value, list) else value
        for key, value in raw_study(result, "verify").items()
        if key in {"control", "knowledge", "attacks", "agreement"}
    }
    report = Report.of(with_raw_study(result, "verify", bare | {"complete": False}))
    assert "no attack" in report.text_of("evidence")
    assert any("incomplete" in box.title for box in report.blocks(Callout, "evidence"))
    assert "No prediction" in report.text_of("evidence")
    assert not {"attacks", "agreement", "tightness"} & set(report.tables)


def test_failed_attacks_and_extreme_numbers_render(audit):
    result = audit("attacked")
    study = raw_study(result, "verify")
    for place, row in enumerate(study["attacks"]):
        row["metrics"] |= {"rmse": [0.0, 1e-9, 1e9, None][place % 4]}
    for one in study["predictions"]:
        one["proxies"]["map_rmse"] |= {"value": 0.0, "low": 0.0, "high": 0.0}
    for key in ("agreement", "reliability", "loss_comparisons", "timings", "prior_only"):
        study[key] = []
    assert render(with_raw_study(result, "verify", study), ("html", "json", "csv", "md"))


@pytest.mark.slow
def test_without_noise_nothing_is_said_to_be_foreseen(audit, report):
    without = Report.of(without_noise(audit("defended")))
    found, figures = without.tables, without.figures
    assert [panel.title for panel in figures["attacked"].plot.panels] == ["noise std 0.01"]
    assert [panel.title for panel in figures["reliability"].plot.panels] == ["noise std 0.01, RMSE ≤ 0.2"]
    assert "at noise std 0.01" in figures["attacked"].title
    assert "without noise" not in figures["attacked"].title
    assert {row[0].text for row in found["tightness"].rows} == {"0.01"}
    assert {row[0].text for row in found["reliability"].rows} == {"0.01"}
    assert {row[2].text for row in found["attacked"].rows if row[1].text == "0"} == {"none without noise"}
    # Ranks stay, with the noise that they are of.
    assert {row[0].text for row in found["agreement"].rows} == {"0", "0.01"}
    assert "reference noise" in found["agreement"].note
    # Without noise there are ranks, and no ratio to a prediction.
    summary = r"without noise, Spearman [^;,]*; at noise std 0.01, Spearman [^;,]*, median"
    assert re.search(summary, without.text_of("evidence"))
    assert "reference noise" not in report("attacked").tables["agreement"].note


def test_raw_names_of_predictions_stay_out(report):
    for name in ("attacked", "calibrated", "control-failed"):
        assert "predicted_rmse" not in report(name).text
        assert "Predicted RMSE (90 % interval)" in report(name).text


def test_the_threat_model_agrees_with_the_attacks(audit, report):
    def first_order(report):
        (scope,) = report.blocks(Bullets, "threat-model")
        (item,) = [item for item in scope.items if "first order" in item]
        return item

    def knowledge(report):
        return {row[0].text: row[1] for row in report.tables["knowledge"].rows}

    assert "No attack was run" in first_order(report("defended"))
    assert "Section 6" in first_order(report("attacked"))
    assert re.search("broken, .*nothing checks", first_order(report("control-failed")))
    assert "Batch-norm statistics" not in knowledge(report("defended"))
    result = audit("attacked")
    study = raw_study(result, "verify")
    study["knowledge"] |= {"labels_known": False}
    without_labels = Report.of(with_raw_study(result, "verify", study))
    known = knowledge(without_labels)
    assert (known["Labels"].text, known["Labels"].detail) == ("yes", "attacks of section 6: no")
    assert known["Range of the inputs"].text == "no"
    assert "Labels: not known" in knowledge_of(without_labels)


def recommendation(result, command):
    return Recommendation(Facts(result.model_copy(update={"command": command})))


def test_the_recommended_command_attacks_the_new_noise_only(audit):
    result = audit("attacked")
    command = "riskaudit verify lenet.pt --data mnist.npz --noise-std 0.01 --attack local --noise-std=0 --limit 6"
    verify = recommendation(result, command)
    expected = f"riskaudit verify lenet.pt --data mnist.npz --attack local --limit 6 --noise-std {verify.std}"
    assert verify.command == expected
    assert f'--noise-std "{verify.std}"' in Report.of(verify.facts.result).verdict.steps[0]
    scan = recommendation(result, "riskaudit scan a.pt --release gaussian:0.01 --data b.npz")
    release = f"gaussian:{scan.std}"
    assert scan.command.split() == ["riskaudit", "scan", "a.pt", "--data", "b.npz", "--release", release]


def test_the_recommended_command_leaves_studies_of_the_old_release_behind(audit):
    command = "riskaudit study training a.pt b.pt --data c.npz"
    training = recommendation(audit("attacked"), f"{command} --add-to out/audit.json --release gaussian:0.01")
    assert training.command == f"{command} --release gaussian:{training.std}"
    snippets = Report.of(training.facts.result).blocks(Snippet, "provenance")
    assert any("earlier ones made the studies" in snippet.caption for snippet in snippets)


def test_the_verdict_says_what_attacks_reached(report):
    fact, corridor = attacks_fact(report("attacked")), report("attacked").figures["corridor"]
    assert words(corridor.title)[1:] in fact
    assert "3 attacks run, positive control passed" in fact


def test_an_unfinished_attack_is_evidence_all_the_same(audit):
    result = audit("attacked")
    study = raw_study(result, "verify")
    for row in study["attacks"]:
        row["status"] = "not_converged"
    found = Report.of(with_raw_study(result, "verify", study)).tables
    cells = [cell for name in ("corridor", "attacked") for row in found[name].rows for cell in row]
    assert {cell.word for cell in cells if "not converged" in cell.word} == {UNFINISHED}


def test_only_the_most_exposed_samples_are_pictured(audit):
    result = with_attacks(audit("exceeded"), png=_png(99))
    report = Report.of(result)
    galleries = report.blocks(Gallery, "evidence")
    assert [len(gallery.items) for gallery in galleries] == [8 * len(ATTACKS)] * 2
    assert re.match(f"Private inputs are shown: .* {2 * 8 * len(ATTACKS)} reconstructions", report.document.banners[0])
    exposed = [row.id for row in list(Facts(result).ranked)[:8]]
    for gallery in galleries:
        assert "8 most exposed of 16" in gallery.caption
        assert [each.label.split(",")[0] for each in gallery.items[:: len(ATTACKS)]] == exposed


def test_an_undefended_audit_takes_the_level_without_noise(audit):
    result = without_noise(audit("undefended"), 0.01)
    study = raw_study(result, "verify")
    for key in ("attacks", "predictions", "agreement", "reliability", "timings", "loss_comparisons"):
        study[key] = [row for row in study[key] if row["noise_std"] == 0]
    result = with_raw_study(result, "verify", study)
    found = read_attack_study(Facts(result))
    assert isinstance(found, AttackStudy)
    assert found.audited_level == 0.0
    report = Report.of(result)
    corridor = report.figures["corridor"]
    assert corridor.title.startswith("Without noise the strongest attack")
    assert "Nothing is predicted here" in corridor.caption
    titles = [column.title for column in corridor.table.columns]
    assert titles == ["Sample", "Strongest attack", "Attack", "Prior-only guess"]
    assert not {"attacked", "reliability"} & set(report.figures)
    assert "tightness" not in report.tables


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler) is not installed")
def test_the_pdf_says_the_same(rendered, tmp_path):
    path = tmp_path / "audit.pdf"
    path.write_bytes(rendered("control-failed", "pdf"))
    run = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True)
    text = " ".join(run.stdout.replace("\u200b", "").split())
    assert "attacks are broken" in text
    assert re.search("not mean .{0,20}data is safe", text)
    # Of folded tables the PDF holds the captions alone.
    assert "HTML report has these tables" in text
    assert "Other proxies and the strongest attack" in text
