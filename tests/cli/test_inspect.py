"""``riskaudit inspect``: exit codes, files, what is said; and the same from Python."""

from __future__ import annotations

import json

import numpy as np
import pytest
import received_cases
import torch

import riskaudit
from riskaudit.checks.received import judging
from riskaudit.errors import ResultError
from riskaudit.report.inspection import render_inspection
from riskaudit.report.inspection.page import build_inspection
from riskaudit.results.inspection import NO_PROOF, InspectionResult, SignRow


@pytest.fixture
def files(tmp_path):
    """A fresh model, one with a planted imprint, and data."""
    fresh, planted = received_cases.mlp(), received_cases.mlp()
    received_cases.plant_imprint(planted, planted.layers[0])
    torch.save(fresh.state_dict(), tmp_path / "fresh.pt")
    torch.save(planted.state_dict(), tmp_path / "planted.pt")
    images = received_cases.inputs(40)
    np.savez(tmp_path / "data.npz", images=images.numpy(), labels=np.arange(40) % 10)
    return tmp_path


def inspect(command, files, received, *options):
    arguments = (files / received, "--data", files / "data.npz", "--arch", "mlp", "--out", "out", *options)
    return command("inspect", *arguments)


def test_an_ordinary_model_exits_0_and_says_that_it_is_no_proof(command, files) -> None:
    outcome = inspect(command, files, "fresh.pt", "--previous", files / "fresh.pt")
    assert (outcome.code, NO_PROOF in outcome.out) == (0, True)
    assert {path.name for path in outcome.folder.glob("inspection.*")} == {"inspection.html", "inspection.json"}
    document = json.loads((outcome.folder / "inspection.json").read_text())
    assert document["flagged"] is False
    assert document["compared_with"]["previous"]["name"] == "fresh.pt"
    assert document["compared_with"]["schemes"] == ["pytorch", "kaiming", "xavier", "lecun"]
    assert {"id", "layer", "value", "reference", "z", "flagged", "reason"} <= set(document["signs"][0])
    assert document["command"].startswith("riskaudit inspect fresh.pt --data data.npz")
    assert str(files) not in json.dumps(document)


def test_a_planted_imprint_exits_1_and_names_sign_and_layer(command, files) -> None:
    outcome = inspect(command, files, "planted.pt")
    assert outcome.code == 1
    assert "imprint-layer at layers.0" in outcome.out
    # What a comparison with the previous round alone shows is said to be missing.
    assert "not judged: without the model of the round before (--previous)" in outcome.out
    result = InspectionResult.load(outcome.folder / "inspection.json")
    assert [(row.id, row.layer) for row in result.flags] == [("imprint-layer", "layers.0")]
    page = (outcome.folder / "inspection.html").read_text()
    assert "imprint-layer at layers.0" in page
    assert "Rendered from inspection.json alone" in page


def test_one_sample_is_enough_for_what_weights_show(command, files) -> None:
    outcome = inspect(command, files, "planted.pt", "--limit", "1", "--quiet")
    result = InspectionResult.load(outcome.folder / "inspection.json")
    assert outcome.code == 1
    assert [row.id for row in result.signs if row.status == "not_applicable"] == ["lone-activation", "singleton-share"]
    assert "lone-activation: needs 32 samples, and 1 was given" in result.compared_with.not_judged


def test_signs_that_werent_judged_are_named_everywhere_with_the_samples_they_need(command, files) -> None:
    outcome = inspect(command, files, "fresh.pt", "--limit", "20", "--previous", files / "fresh.pt")
    verdict = "6 of 7 signs judged, none flagged; 1 not judged: lone-activation (needs 32 samples)"
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, verdict)
    assert "not judged: lone-activation: needs 32 samples, and 20 were given" in outcome.out
    result = InspectionResult.load(outcome.folder / "inspection.json")
    assert [(row.id, row.samples_needed) for row in result.unjudged] == [("lone-activation", 32)]
    page = (outcome.folder / "inspection.html").read_text()
    assert "6 of 7 signs judged, none flagged; 1 not judged" in page
    assert "needs 32 samples, and 20 were given" in page
    everything = inspect(command, files, "fresh.pt", "--previous", files / "fresh.pt", "--out", "all")
    assert everything.out.splitlines()[0] == "all 7 signs judged, none flagged"


@pytest.mark.parametrize(("count", "tone"), [(20, "medium"), (40, "low")])
def test_what_wasnt_judged_is_never_safe(files, count, tone) -> None:
    checkpoint = riskaudit.load_checkpoint(files / "fresh.pt", arch="mlp")
    samples = riskaudit.load_samples(files / "data.npz", limit=count)
    result = riskaudit.inspect_received(checkpoint, samples, previous=checkpoint)
    callout = build_inspection(result).sections[0].blocks[0]
    assert (callout.title, callout.tone) == ("No sign flagged", tone)


def test_more_samples_are_not_asked_for_where_they_wouldnt_be_used(monkeypatch) -> None:
    monkeypatch.setattr(judging, "MAX_WORK", 1e6)
    rows = {row.id: row for row in judging.judge_model(received_cases.mlp(), received_cases.inputs(8)).rows}
    row = rows["lone-activation"]
    assert (row.status, row.samples_needed) == ("not_applicable", None)
    assert row.reason == "needs 32 samples, and a model of this size is looked at with 15 at most"


def test_no_sign_judged_is_no_sign_of_safety(files) -> None:
    samples = riskaudit.load_samples(files / "data.npz")
    result = riskaudit.inspect_received(riskaudit.load_checkpoint(files / "fresh.pt", arch="mlp"), samples)
    row = SignRow(id="lone-activation", status="not_applicable", reason="why", samples_needed=32)
    nothing = result.model_copy(update={"signs": [row]})
    words = "no sign could be judged: lone-activation (needs 32 samples); that is no sign of safety"
    assert nothing.verdict == words
    assert build_inspection(nothing).sections[0].blocks[0].tone == "unknown"


@pytest.mark.parametrize("broken", ["received", "previous", "other architecture", "no data"])
def test_what_cannot_be_read_exits_2_with_one_sentence_and_writes_nothing(command, files, broken) -> None:
    (files / "broken.pt").write_bytes(b"\x80\x02cos\nsystem\n(S'echo'\ntR.")
    other = received_cases.mlp(widths=(64, 32, 10))
    torch.save(other.state_dict(), files / "other.pt")
    received = "broken.pt" if broken == "received" else "fresh.pt"
    previous = {"previous": "broken.pt", "other architecture": "other.pt"}.get(broken)
    options = [] if previous is None else ["--previous", files / previous]
    if broken == "no data":
        (files / "data.npz").write_bytes(b"")
    outcome = inspect(command, files, received, *options)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert not outcome.folder.exists()


def test_a_model_whose_outputs_overflow_is_not_inspected(command, files) -> None:
    model = received_cases.mlp()
    with torch.no_grad():
        model.layers[0].weight.fill_(1e30)
        model.layers[2].weight.fill_(1e30)
    torch.save(model.state_dict(), files / "huge.pt")
    outcome = inspect(command, files, "huge.pt")
    assert outcome.code == 2
    assert "aren't finite" in outcome.err


def test_the_same_from_python_as_from_the_command_line(command, files) -> None:
    outcome = inspect(command, files, "planted.pt")
    checkpoint = riskaudit.load_checkpoint(files / "planted.pt", arch="mlp")
    samples = riskaudit.load_samples(files / "data.npz")
    result = riskaudit.inspect_received(checkpoint, samples)
    assert result.signs == InspectionResult.load(outcome.folder / "inspection.json").signs
    assert riskaudit.inspect_received(checkpoint.model, samples).signs == result.signs


def test_a_file_that_contradicts_its_rows_is_refused(files) -> None:
    samples = riskaudit.load_samples(files / "data.npz")
    result = riskaudit.inspect_received(riskaudit.load_checkpoint(files / "planted.pt", arch="mlp"), samples)
    document = json.loads(result.to_json())
    assert InspectionResult.from_json(json.dumps(document)) == result
    with pytest.raises(ResultError, match="against its own rows"):
        InspectionResult.from_json(json.dumps({**document, "flagged": False}))
    with pytest.raises(ResultError, match="schema_version 1"):
        InspectionResult.from_json(json.dumps({**document, "schema_version": 2}))


def test_names_in_the_page_are_escaped(files) -> None:
    samples = riskaudit.load_samples(files / "data.npz")
    result = riskaudit.inspect_received(riskaudit.load_checkpoint(files / "fresh.pt", arch="mlp"), samples)
    script = "<script>alert(1)</script>"
    named = result.model_copy(update={"checkpoint": result.checkpoint.model_copy(update={"name": script})})
    rows = [row.model_copy(update={"layer": script}) for row in result.signs]
    page = render_inspection(named.model_copy(update={"signs": rows}), ["html"])["inspection.html"].decode()
    assert script not in page
    assert "&lt;script&gt;" in page
