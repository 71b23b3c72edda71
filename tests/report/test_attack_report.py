"""Audits with an attack study: control first, corridor, agreement, and nothing shown that wasn't asked for."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from attack_cases import ATTACKS, ORACLE, attack_study, raw_study, with_attacks, with_raw_study
from report_cases import build
from test_html_report import Page

from riskaudit.document.blocks import Figure, Table
from riskaudit.document.plots import CorridorPlot, PanelPlot
from riskaudit.formatting import correlation
from riskaudit.report import FILE_NAMES, FORMATS, render
from riskaudit.report.build import build_document
from riskaudit.report.recommendation import Recommendation
from riskaudit.results.facts import Facts
from riskaudit.studies.verify.section.reading import AttackStudy, read_attack_study


def text_of(result) -> str:
    return Page(render(result, ("html",))["audit.html"]).text.replace("\u00a0", " ")


@pytest.fixture
def page(rendered):
    return lambda name: Page(rendered(name, "html"))


@pytest.fixture
def words(page):
    return lambda name: page(name).text.replace("\u00a0", " ")


def blocks(result, kind):
    return [block for section in build_document(result).sections for block in section.blocks if isinstance(block, kind)]


def tables(result) -> dict[str, Table]:
    found = {block.id: block for block in blocks(result, Table)}
    return found | {block.table.id: block.table for block in blocks(result, Figure)}


def test_the_same_result_gives_the_same_bytes(audit, rendered):
    again = render(audit("attacked-hostile"), FORMATS)
    assert all(again[FILE_NAMES[format_]] == rendered("attacked-hostile", format_) for format_ in FORMATS)


def test_the_control_is_the_first_line_of_the_evidence(words):
    assert "6 Evidence Positive control passed: gauss-newton works The attack gauss-newton" in words("attacked")
    assert "6 Evidence Positive control skipped Whether" not in words("attacked")
    assert "6 Evidence Positive control skipped" in words("control-skipped")
    assert "so a failed reconstruction proves nothing" in words("control-skipped")


def test_a_failed_control_means_broken_attacks_and_not_safe_data(words, rendered):
    text = words("control-failed")
    assert "6 Evidence Positive control failed: the attacks are broken" in text
    assert "does not mean that the data is safe" in text
    assert "positive control failed (the attacks are broken)" in text
    assert "At noise std 0.01 the attacks say nothing: they failed their positive control" in text
    assert "Can't be judged" in text
    assert "the attacks work" not in text.split("Positive control failed")[0]
    assert "Positive control failed: the attacks are broken" in rendered("control-failed", "md").decode()
    # No sentence draws comfort from what they failed to do.
    assert "fell short of the predicted" not in text
    assert "beat the prior-only guess" not in text


def test_what_the_attacks_knew(words):
    text = words("attacked")
    for item in ("Labels: known.", "Range of the inputs: not known.", "Prior: class prior of 10,000 images."):
        assert item in text


def test_calibration_or_its_absence_is_stated(words):
    for name in ("attacked", "defended"):
        assert "not calibrated against attacks" in words(name)
        assert "Not calibrated against attacks" in words(name)
    text = words("calibrated")
    assert "Not calibrated" not in text
    assert "between 0.880 and 1.40 times MAP RMSE with a probability of 90 %" in text
    assert "exchangeable with the 60 of the calibration" in text
    assert "From mnist-calibration.npz, sha256 b1b1b1b1b1b1…, at noise std 0.01" in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.8, None, "at least 0.800 times MAP RMSE (too few samples for an upper end)"),
        (None, 1.4, "at most 1.40 times MAP RMSE (too few samples for a lower end)"),
        (None, None, "not bounded, because the calibration has too few samples"),
    ],
)
def test_a_calibration_of_too_few_samples(audit, low, high, expected):
    result = audit("calibrated")
    one_sided = result.calibration.model_copy(update={"low_factor": low, "high_factor": high})
    assert expected in text_of(result.model_copy(update={"calibration": one_sided}))


def test_the_corridor_is_that_of_the_records(audit):
    result = audit("attacked")
    study = attack_study(result)
    figure = next(block for block in blocks(result, Figure) if block.id == "corridor")
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


def test_only_the_most_exposed_samples_are_drawn():
    result = with_attacks(build(60))
    figure = next(block for block in blocks(result, Figure) if block.id == "corridor")
    assert len(figure.plot.corridors) == 40
    assert len(figure.table.rows) == 60
    assert "Only the 40 most exposed of 60 samples are drawn" in figure.caption


def test_the_lower_end_is_the_strongest_claim(audit):
    def title(result):
        return next(block for block in blocks(result, Figure) if block.id == "corridor").plot.titles[0]

    assert title(audit("calibrated")).startswith("calibrated lower end")
    assert title(audit("attacked")) == "lower end of the 90\u00a0% predictive interval"
    result = audit("attacked")
    study = raw_study(result, "verify")
    for one in study["predictions"]:
        del one["proxies"]["predicted_rmse"]
    assert title(with_raw_study(result, "verify", study)) == "lower end of MAP RMSE"
    for one in study["predictions"]:
        one["proxies"]["map_rmse"] |= {"low": None, "high": None}
    assert title(with_raw_study(result, "verify", study)) == "I2F lower bound"


def test_the_oracle_start_is_shown_apart_and_labelled(audit, words):
    result = audit("attacked")
    found = tables(result)
    for name in ("agreement", "agreement-attacks", "agreement-all", "tightness"):
        assert not any(ORACLE in cell.text for row in found[name].rows for cell in row), name
        assert not any(ORACLE in column.title for column in found[name].columns), name
    assert all(f"{ORACLE} (oracle start)" == row[1].text for row in found["oracle-tightness"].rows)
    assert "not an attack that anyone can run" in words("attacked")
    assert not re.search(rf"{ORACLE}(?! \(oracle start\))", words("attacked").replace("\u200b", ""))


def test_agreement_tables_hold_the_records(audit):
    result = audit("attacked")
    found, study = tables(result), attack_study(result)
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


def test_calibrated_columns_are_there_only_with_a_calibration(audit):
    def titles(name):
        return {column.title for column in tables(audit(name))["tightness"].columns}

    assert titles("calibrated") - titles("attacked") == {"Not below, calibrated", "Inside, calibrated"}


def test_panels_per_noise_level(audit):
    figures = {block.id: block.plot for block in blocks(audit("attacked"), Figure)}
    for name in ("attacked", "reliability"):
        assert isinstance(figures[name], PanelPlot)
        assert len(figures[name].panels) == 2
    assert all(len(panel.points) == len(panel.apart) == 24 for panel in figures["attacked"].panels)


def test_gaps_name_what_the_attacks_leave_open(words):
    text = words("attacked")
    assert "Attacks that are stronger than those that were run" in text
    assert "a positive control that the attacks work at all" not in text
    assert "a positive control that the attacks work at all" in words("defended")
    assert "the positive control failed" in words("control-failed")


def test_no_picture_without_show_samples(rendered, page, audit):
    for name in ("attacked", "control-failed", "calibrated", "attacked-hostile"):
        assert b"data:image" not in rendered(name, "html")
    shown = page("attacked-shown")
    assert shown.texts[0].startswith(
        "Private inputs are shown: this report contains 6 private inputs (section 4) and 48 reconstructions"
    )
    assert rendered("attacked-shown", "html").count(b"data:image/png") == 6 + 2 * (6 + 6 * 4)
    result = audit("attacked-shown")
    samples = [row.model_copy(update={"image_png": None}) for row in result.samples]
    only = Page(render(result.model_copy(update={"samples": samples}), ("html",))["audit.html"])
    assert only.texts[0].startswith("Private inputs are shown: this report contains 48 reconstructions of private")


def test_pictures_say_what_they_are(page):
    alts = [attributes["alt"] for tag, attributes in page("attacked-shown").tags if tag == "img"]
    assert any(alt.startswith("Private input of sample") for alt in alts)
    assert any(alt.startswith(f"Reconstruction by {ORACLE} (oracle start) of sample") for alt in alts)


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
    ("study", "words"),
    [
        ({}, "control: Field required"),
        ([1, 2], "studies.verify: Input should be"),
        ("text", "studies.verify: Input should be"),
        ({"control": {"status": "<b>"}}, "control.status: Input should be"),
    ],
    ids=["empty", "list", "text", "wrong"],
)
def test_a_malformed_study_is_one_line(audit, study, words):
    result = with_raw_study(audit("one"), "verify", study)
    text = Page(render(result, ("html",))["audit.html"]).text
    assert f"Studies in audit.json that can't be read Verify: {words}" in text
    assert "Not calibrated against attacks" in text
    assert "The risk corridor" not in text


def test_a_study_without_results_renders(audit):
    result = audit("attacked")
    bare = {
        key: [] if isinstance(value, list) else value
        for key, value in raw_study(result, "verify").items()
        if key in {"control", "knowledge", "attacks", "agreement"}
    }
    text = text_of(with_raw_study(result, "verify", bare | {"complete": False}))
    assert "The study holds no attack" in text
    assert "The attack study is incomplete" in text
    assert "No prediction could be held against an attack" in text


def test_failed_attacks_and_extreme_numbers_render(audit):
    result = audit("attacked")
    study = raw_study(result, "verify")
    for place, row in enumerate(study["attacks"]):
        row["metrics"] |= {"rmse": [0.0, 1e-9, 1e9, None][place % 4]}
    for one in study["predictions"]:
        one["proxies"]["map_rmse"] |= {"value": 0.0, "low": 0.0, "high": 0.0}
    for key in ("agreement", "reliability", "loss_comparisons", "timings", "prior_only"):
        study[key] = []
    render(with_raw_study(result, "verify", study), FORMATS)


def test_without_noise_nothing_is_said_to_be_foreseen(audit):
    from attack_cases import without_noise

    result = without_noise(audit("defended"))
    text, found = text_of(result), tables(result)
    figures = {block.id: block for block in blocks(result, Figure)}
    assert [panel.title for panel in figures["attacked"].plot.panels] == ["noise std 0.01"]
    assert [panel.title for panel in figures["reliability"].plot.panels] == ["noise std 0.01, RMSE ≤ 0.2"]
    assert "times the prediction at noise std 0.01" in figures["attacked"].title
    assert "without noise" not in figures["attacked"].title
    assert {row[0].text for row in found["tightness"].rows} == {"0.01"}
    assert {row[0].text for row in found["reliability"].rows} == {"0.01"}
    assert {row[2].text for row in found["attacked"].rows if row[1].text == "0"} == {"none without noise"}
    # Ranks stay, with the noise that they are of.
    assert {row[0].text for row in found["agreement"].rows} == {"0", "0.01"}
    assert "the predictions are those of the reference noise" in found["agreement"].note
    assert re.search(r"without noise, Spearman [^;]*; at noise std 0.01, Spearman [^;]*, median of attack over", text)
    assert "reference noise" not in tables(audit("attacked"))["agreement"].note


def test_raw_names_of_predictions_stay_out(words):
    for name in ("attacked", "calibrated", "control-failed"):
        assert "predicted_rmse" not in words(name)
        assert "Predicted RMSE (90 % interval)" in words(name)


def test_the_threat_model_agrees_with_the_attacks(audit, words):
    def card(text):
        return text.split("2 Threat model")[1].split("3 How much leaks")[0]

    assert "No attack was run to check them." in card(words("defended"))
    assert "Batch-norm statistics" not in card(words("defended"))
    assert "Section 6 holds them against attacks on the release itself." in card(words("attacked"))
    assert "The attacks of section 6 are broken, so nothing checks them." in card(words("control-failed"))
    for name in ("attacked", "control-failed"):
        assert "No attack was run" not in card(words(name))
    result = audit("attacked")
    study = raw_study(result, "verify")
    study["knowledge"] |= {"labels_known": False}
    text = text_of(with_raw_study(result, "verify", study))
    assert "Labels yes attacks of section 6: no" in card(text)
    assert "Labels: not known, recovered from the release." in text
    assert "Range of the inputs no" in card(text)


def recommendation(result, command):
    return Recommendation(Facts(result.model_copy(update={"command": command})))


def test_the_recommended_command_attacks_the_new_noise_only(audit):
    result = audit("attacked")
    command = "riskaudit verify lenet.pt --data mnist.npz --noise-std 0.01 --attack local --noise-std=0 --limit 6"
    verify = recommendation(result, command)
    expected = f"riskaudit verify lenet.pt --data mnist.npz --attack local --limit 6 --noise-std {verify.std}"
    assert verify.command == expected
    assert f'Audit again with --noise-std "{verify.std}"' in text_of(verify.facts.result)
    scan = recommendation(result, "riskaudit scan a.pt --release gaussian:0.01 --data b.npz")
    release = f"gaussian:{scan.std}"
    assert scan.command == f"riskaudit scan a.pt --data b.npz --release {release}"


def test_the_recommended_command_leaves_studies_of_the_old_release_behind(audit):
    command = "riskaudit study training a.pt b.pt --data c.npz --add-to out/audit.json --release gaussian:0.01"
    training = recommendation(audit("attacked"), command)
    release = f"gaussian:{training.std}"
    assert training.command == f"riskaudit study training a.pt b.pt --data c.npz --release {release}"
    assert "The last command; earlier ones made the studies that it kept" in text_of(training.facts.result)


def test_the_verdict_says_what_attacks_reached(words):
    verdict = words("attacked").split("Threat model", 2)[1]
    assert "at noise std 0.01 the strongest attack came within 10 % of the predicted error, or below it, on" in verdict
    assert "beat the prior-only guess on" in verdict
    assert "the attacks say nothing" in words("control-failed").split("Threat model", 2)[1]


def test_an_unfinished_attack_is_evidence_all_the_same(audit):
    result = audit("attacked")
    study = raw_study(result, "verify")
    for row in study["attacks"]:
        row["status"] = "not_converged"
    found = tables(with_raw_study(result, "verify", study))
    cells = [cell for name in ("corridor", "attacked") for row in found[name].rows for cell in row]
    assert any(cell.word == "not converged: the attack may get nearer still" for cell in cells)
    assert not any(cell.word == "not converged: don't rely on it" for cell in cells)


def test_only_the_most_exposed_samples_are_pictured(audit):
    from attack_cases import with_attacks
    from report_cases import _png

    result = with_attacks(audit("exceeded"), png=_png(99))
    page = Page(render(result, ("html",))["audit.html"])
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2 * 8 * len(ATTACKS)
    assert page.texts[0].startswith(f"Private inputs are shown: this report contains {len(pictures)} reconstructions")
    assert "the 8 most exposed of 16 samples" in page.text
    exposed = [row.id for row in Facts(result).ranked[:8]]
    assert [alt.split("of sample ")[1].split(",")[0] for alt in pictures[:: len(ATTACKS)]] == exposed * 2


def test_an_undefended_audit_takes_the_level_without_noise(audit):
    from attack_cases import without_noise

    result = without_noise(audit("undefended"), 0.01)
    study = raw_study(result, "verify")
    for key in ("attacks", "predictions", "agreement", "reliability", "timings", "loss_comparisons"):
        study[key] = [row for row in study[key] if row["noise_std"] == 0]
    result = with_raw_study(result, "verify", study)
    found = read_attack_study(Facts(result))
    assert isinstance(found, AttackStudy)
    assert found.audited_level == 0.0
    text = text_of(result)
    assert "Without noise the strongest attack" in text
    assert "Nothing is predicted here" in text
    corridor = tables(result)["corridor"]
    assert [column.title for column in corridor.columns] == ["Sample", "Strongest attack", "Attack", "Prior-only guess"]
    assert not {"attacked", "reliability"} & {block.id for block in blocks(result, Figure)}
    assert "tightness" not in tables(result)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler) is not installed")
def test_the_pdf_says_the_same(rendered, tmp_path):
    path = tmp_path / "audit.pdf"
    path.write_bytes(rendered("control-failed", "pdf"))
    run = subprocess.run(["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True)
    text = " ".join(run.stdout.replace("\u200b", "").split())
    assert "Positive control failed: the attacks are broken" in text
    assert "does not mean that the data is safe" in text
    assert "The HTML report has these tables too: Other proxies and the strongest attack" in text
