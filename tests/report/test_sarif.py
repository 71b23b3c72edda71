"""SARIF logs: as the schema has it, stable, and without folders or private input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sarif_schema import faults

from riskaudit.policy import Policy
from riskaudit.report import render
from riskaudit.report.attestation import render_attestation
from riskaudit.report.inspection import render_inspection
from riskaudit.report.sarif.log import FINGERPRINT, Artifact, Finding, Rule, to_sarif
from riskaudit.results import AuditResult
from riskaudit.results.attestation import Attestation, AttestationTest, DeclarationInfo, LintFinding, VectorFile
from riskaudit.results.checks import CHECK_IDS, CheckFinding
from riskaudit.results.inspection import (
    NO_PROOF,
    Comparison,
    InspectionResult,
    InspectionSettings,
    SignInfo,
    SignRow,
)
from riskaudit.results.subject import CheckpointInfo, DataInfo, Tool

ROOT = Path(__file__).parents[2]
RULE = Rule("check/x", "X", "It is X.", "Mend it.", "docs/sarif.md")
CASES = ["exceeded", "failed", "hostile", "undefended", "uploads"]


def log_of(content: bytes) -> dict[str, Any]:
    document = json.loads(content)
    assert list(faults(document)) == []
    return document["runs"][0]


def sarif_of(result: AuditResult) -> dict[str, Any]:
    return log_of(render(result, ("sarif",))["audit.sarif"])


def ids_of(run: dict[str, Any]) -> list[str]:
    return [result["ruleId"] for result in run["results"]]


def strings_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [string for each in value for string in strings_in(each)]
    return [value] if isinstance(value, str) else []


def fingerprints(run: dict[str, Any]) -> list[str]:
    return [result["partialFingerprints"][FINGERPRINT] for result in run["results"]]


@pytest.mark.parametrize("name", CASES)
def test_logs_follow_the_schema_and_name_their_rules(audit, name) -> None:
    run = sarif_of(audit(name))
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"]
    assert {rule["id"] for rule in rules} == set(ids_of(run))


def test_the_validator_finds_faults() -> None:
    document = json.loads(to_sarif(Tool(version="1"), [RULE], [Finding(RULE.id, "M.", [Artifact("a", None)])]))
    document["runs"][0]["results"][0]["level"] = "high"
    document["runs"][0]["colour"] = "red"
    document["runs"][0]["tool"]["driver"]["rules"][0]["helpUri"] = "docs/sarif.md"
    del document["version"]
    assert len(list(faults(document))) == 4


@pytest.mark.parametrize("name", CASES)
def test_every_sample_at_high_risk_or_without_a_verdict_is_there(audit, name) -> None:
    result = AuditResult.from_json(render(audit(name), ("json",))["audit.json"])
    found = [each for each in sarif_of(result)["results"] if each["ruleId"].startswith("sample/")]
    expected = [row for row in result.samples if row.verdict in ("high", "not_assessed")]
    assert len(found) == len(expected)
    levels = {"high": "error", "not_assessed": "warning"}
    assert [each["level"] for each in found] == [levels[row.verdict] for row in expected]


def test_limits_are_findings_of_their_own(audit) -> None:
    result = audit("exceeded")
    policy = Policy(max_revealed=0.01, min_rmse=10.0).decide(result)
    run = sarif_of(result.model_copy(update={"policy": policy}))
    found = {each["ruleId"]: each for each in run["results"] if each["ruleId"].startswith("policy/")}
    assert set(found) == {"policy/max_revealed", "policy/min_rmse"}
    assert {each["level"] for each in found.values()} == {"error"}
    assert found["policy/max_revealed"]["properties"]["samples"] == policy.exceeded
    kept = Policy(max_revealed=1.0).decide(result)
    assert kept.decision == "allow"
    assert not any(each.startswith("policy/") for each in ids_of(sarif_of(result.model_copy(update={"policy": kept}))))


def test_a_decision_that_no_limit_explains_is_there_too(audit) -> None:
    result = audit("exceeded")
    policy = Policy(max_revealed=1.0).decide(result).model_copy(update={"decision": "block", "reasons": ["by hand"]})
    run = sarif_of(result.model_copy(update={"policy": policy}))
    assert "policy/decision" in ids_of(run)
    assert "audit/contradiction" in ids_of(run)


def check(name="singleton-unit", status="leak", **fields) -> CheckFinding:
    given = {"title": "T", "exactness": "exact", "recovers": "input", "layer": "fc1", "sample_ids": ["a", "b"]}
    return CheckFinding(id=name, status=status, **{**given, **fields})


def test_leaks_are_findings_and_what_is_clear_is_none(audit) -> None:
    checks = [
        check(),
        check(upload=1, predicted_rmse=0.01, exactness="predicted"),
        check("labels", recovers="labels", layer=None),
        check("span", recovers="subspace", exactness="if_server_changes_model"),
        check("token-span", "failed", recovers="tokens", reason="it failed", sample_ids=[]),
        check("head-features", "clear", recovers="features"),
        check("embedding-rows", "not_applicable", recovers="tokens"),
    ]
    run = sarif_of(audit("exceeded").model_copy(update={"checks": checks}))
    found = [each for each in run["results"] if each["ruleId"].startswith("check/")]
    assert [(each["ruleId"], each["level"]) for each in found] == [
        ("check/singleton-unit", "error"),
        ("check/singleton-unit", "error"),
        ("check/labels", "warning"),
        ("check/span", "note"),
        ("check/token-span", "warning"),
    ]
    assert found[0]["properties"]["samples"] == ["a", "b"]
    assert found[0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "fc1"
    assert len({each["partialFingerprints"][FINGERPRINT] for each in found}) == len(found)
    pages = {rule["id"]: rule["properties"]["documentation"] for rule in run["tool"]["driver"]["rules"]}
    assert pages["check/labels"] == "docs/checks/labels.md"
    assert all((ROOT / page).is_file() for page in pages.values())


def test_what_is_nearly_recovered_has_its_error(audit) -> None:
    nearly = check(exactness="predicted", details={"relative_error": {"a": 0.002, "b": 0.004}})
    run = sarif_of(audit("exceeded").model_copy(update={"checks": [check(), nearly]}))
    exact, near = [each for each in run["results"] if each["ruleId"] == "check/singleton-unit"]
    assert "relative error" not in exact["message"]["text"]
    assert "with a relative error of 0.4 % at most" in near["message"]["text"]
    assert exact["partialFingerprints"] != near["partialFingerprints"]


def test_every_check_has_its_page_and_the_rule_its_id(audit) -> None:
    pages = {page.stem: page for page in (ROOT / "docs" / "checks").glob("*.md") if page.stem != "README"}
    assert set(pages) == set(CHECK_IDS)
    checks = [check(name, status) for name in CHECK_IDS for status in ("leak", "failed")]
    run = sarif_of(audit("exceeded").model_copy(update={"checks": checks}))
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"] if rule["id"].startswith("check/")}
    assert list(rules) == [f"check/{name}" for name in CHECK_IDS]
    for name, page in pages.items():
        assert page.read_text().startswith(f"# {name}: ")
        assert rules[f"check/{name}"]["properties"]["documentation"] == f"docs/checks/{name}.md"
        assert f"docs/checks/{name}.md" in rules[f"check/{name}"]["help"]["text"]


@pytest.mark.parametrize("name", CASES)
def test_rules_come_once_and_say_what_they_are_of(audit, name) -> None:
    run = sarif_of(audit(name))
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len({rule["name"] for rule in rules}) == len(rules)
    for rule in rules:
        assert all(rule[part]["text"].strip() for part in ("shortDescription", "fullDescription", "help"))
        # It must be absolute, and the documentation has no address.
        assert "helpUri" not in rule
        assert "](" not in rule["help"]["markdown"]


def test_forbidden_checks_are_a_limit_of_their_own(audit) -> None:
    result = audit("within").model_copy(update={"checks": [check()]})
    policy = Policy(max_revealed=1.0, forbid_checks=("singleton-unit",)).decide(result)
    assert policy.decision == "block"
    run = sarif_of(result.model_copy(update={"policy": policy}))
    assert [each for each in ids_of(run) if each.startswith("policy/")] == ["policy/forbid_checks"]


def test_fingerprints_are_those_of_the_inputs_and_not_of_the_numbers(audit) -> None:
    result = audit("exceeded")
    first = sarif_of(result)
    assert len(set(fingerprints(first))) == len(first["results"]) > 2
    row = result.samples[0].model_copy(update={"loss": 1.0})
    cost = result.cost.model_copy(update={"seconds": 1.0})
    changed = {"created_at": "2031-01-01T00:00:00Z", "samples": [row, *result.samples[1:]], "cost": cost}
    again = result.model_copy(update=changed)
    assert fingerprints(sarif_of(again)) == fingerprints(first)
    data = result.data.model_copy(update={"sha256": "0" * 64})
    assert not set(fingerprints(sarif_of(result.model_copy(update={"data": data})))) & set(fingerprints(first))


def test_locations_are_names_of_files() -> None:
    for name, uri in {
        "model.pt": "model.pt",
        "/home/someone/model.pt": "model.pt",
        "C:\\data\\x.npz": "x.npz",
        "a:b c.pt": "a%3Ab%20c.pt",
        "..": "..",
        "": "unnamed",
        "é<script>": "%C3%A9%3Cscript%3E",
    }.items():
        assert Artifact(name, None).uri == uri


def test_no_images_and_no_control_characters(audit) -> None:
    for name in ("shown", "hostile"):
        text = render(audit(name), ("sarif",))["audit.sarif"].decode()
        assert "image_png" not in text
        assert not [string for string in strings_in(json.loads(text)) if not string.isprintable()]
        assert len(text) < 200_000


def test_a_sentence_with_other_numbers_is_the_same_finding(audit) -> None:
    contradictory = audit("exceeded").model_copy(update={"samples": audit("exceeded").samples[:4] * 2})
    shorter = audit("exceeded").model_copy(update={"samples": audit("exceeded").samples[:3] * 2})
    messages = [sarif_of(result)["results"][0]["message"]["text"] for result in (contradictory, shorter)]
    assert messages[0] != messages[1]
    assert fingerprints(sarif_of(contradictory))[0] == fingerprints(sarif_of(shorter))[0]


def attestation() -> Attestation:
    file = VectorFile(name="update.pt", sha256="1" * 64, num_tensors=1, num_entries=2, dtypes=["float32"])
    test = {"title": "T", "reason": "it is so", "false_alarm": 1e-3}
    return Attestation(
        tool=Tool(version="1"),
        created_at="2030-01-01T00:00:00Z",
        update=file,
        declared=DeclarationInfo(release="clip:1"),
        received=file.model_copy(update={"name": "model.pt"}),
        false_alarm=1e-3,
        outcome="not_as_declared",
        tests=[
            AttestationTest(id="names", claim="contract", status="not_as_declared", **test),
            AttestationTest(id="noise-size", claim="noise", status="could_not_tell", tensor="fc.bias", **test),
            AttestationTest(id="norm", claim="norm", status="as_declared", **test),
        ],
        findings=[LintFinding(id="noise-per-sum", title="N", severity="warning", message="m", advice="Do it.")],
    )


def test_attestations_list_what_fails_and_what_can_not_be_told() -> None:
    run = log_of(render_attestation(attestation(), ("sarif",))["attestation.sarif"])
    assert {each["ruleId"]: each["level"] for each in run["results"]} == {
        "attestation/names": "error",
        "attestation/noise-size": "warning",
        "lint/noise-per-sum": "warning",
    }
    uris = [each["physicalLocation"]["artifactLocation"]["uri"] for each in run["results"][0]["locations"]]
    assert uris == ["update.pt", "model.pt"]
    logical = run["results"][1]["locations"][0]["logicalLocations"]
    assert logical == [{"fullyQualifiedName": "fc.bias", "kind": "module"}]


def inspection() -> InspectionResult:
    checkpoint = CheckpointInfo(name="received.pt", sha256="2" * 64, architecture="mlp", num_parameters=9)
    data = DataInfo(name="data.npz", sha256=None, num_samples=4, input_shape=[2], input_range=[0.0, 1.0])
    info = {"title": "T", "summary": "it counts", "innocent": "chance", "source": "S", "units": "share"}
    rows = [
        SignRow(id="imprint-layer", layer="fc1", value=0.9, z=40.0, flagged=True, reason="rows are alike"),
        SignRow(id="norm-drift", status="failed", reason="it failed"),
        SignRow(id="norm-drift", layer="fc2", value=1.0, reason="as usual"),
    ]
    return InspectionResult(
        tool=Tool(version="1"),
        created_at="2030-01-01T00:00:00Z",
        checkpoint=checkpoint,
        data=data,
        compared_with=Comparison(schemes=["pytorch"], num_models=3),
        settings=InspectionSettings(seed=0, batch_size=16, num_samples=4),
        seconds=1.0,
        flagged=True,
        signs=rows,
        sign_infos=[SignInfo(id="imprint-layer", threshold=0.01, **info)],
    )


def test_inspections_list_flags_and_signs_without_a_number() -> None:
    run = log_of(render_inspection(inspection(), ("sarif",))["inspection.sarif"])
    assert [(each["ruleId"], each["level"]) for each in run["results"]] == [
        ("inspection/imprint-layer", "error"),
        ("inspection/norm-drift", "warning"),
    ]
    location = run["results"][0]["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "received.pt"
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "fc1"
    assert NO_PROOF in run["results"][0]["message"]["text"]


def test_pages_that_rules_name_are_there(audit) -> None:
    runs = [sarif_of(audit(name)) for name in CASES]
    runs.append(log_of(render_attestation(attestation(), ("sarif",))["attestation.sarif"]))
    runs.append(log_of(render_inspection(inspection(), ("sarif",))["inspection.sarif"]))
    pages = {rule["properties"]["documentation"] for run in runs for rule in run["tool"]["driver"]["rules"]}
    assert pages
    assert [page for page in pages if not (ROOT / page).is_file()] == []


def test_logs_are_made_without_torch() -> None:
    code = (
        "import sys, riskaudit.report.attestation, riskaudit.report.inspection\n"
        "from riskaudit.report.sarif import attestation, audit, inspection\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
