"""``riskaudit inspect``: exit codes, files, what is said; and the same from Python."""

from __future__ import annotations

import json

import numpy as np
import pytest
import received_cases
import torch

import riskaudit
from riskaudit.errors import ResultError
from riskaudit.report.inspection import render_inspection
from riskaudit.results.inspection import NO_PROOF, InspectionResult


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
    assert any("needs 32 samples" in words for words in result.compared_with.not_judged)


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
