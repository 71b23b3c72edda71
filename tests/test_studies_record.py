"""Studies beside an audit: read by kind, and what can't be read survives a rewrite and harms nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riskaudit.report.build import build_document
from riskaudit.results import AuditResult, Studies
from riskaudit.results.studies import StudyRecord
from riskaudit.studies.initialization.record import InitializationStudy
from riskaudit.studies.rows import Control
from riskaudit.studies.training import section

FIXTURE = Path(__file__).parent / "data" / "audit-schema1.json"


def study(architecture: str = "lenet") -> InitializationStudy:
    return InitializationStudy(
        architecture=architecture, noise_std=0.01, reference_noise=False, prior_rmse=0.3, num_seeds=1, confidence=0.95,
        rows=[], trials=[], recommended=None, attacks=[], recommendation="none", control=Control(
            status="skipped", rmse=None
        ),
    )  # fmt: skip


def test_a_file_holds_only_the_studies_that_ran() -> None:
    assert Studies().model_dump() == {}
    studies = Studies().with_study(study())
    assert list(studies) == list(studies.model_dump()) == ["initialization"]
    assert Studies.model_validate_json(studies.model_dump_json()) == studies


@pytest.mark.parametrize(
    ("name", "content"),
    [("verify", {"attacks": 3}), ("training", []), ("of-tomorrow", {"rows": [1]}), ("fairness", "text")],
)
def test_what_cannot_be_read_is_kept_as_it_is(name, content) -> None:
    document = json.loads(FIXTURE.read_text())
    document["studies"] = {name: content, "initialization": study().model_dump(mode="json")}
    result = AuditResult.from_json(json.dumps(document))
    assert list(result.studies) == ["initialization"]
    assert result.studies.unreadable[name].reason
    again = AuditResult.from_json(result.to_json())
    assert again == result
    assert json.loads(result.to_json())["studies"][name] == content


def test_a_study_made_anew_replaces_the_earlier_and_the_unreadable() -> None:
    earlier = Studies.model_validate({"initialization": {"rows": 3}, "verify": 5, "later": {}})
    new = Studies().with_study(study("mlp"))
    merged = new.over(earlier)
    assert merged.get(InitializationStudy) == study("mlp")
    assert set(merged.unreadable) == {"verify", "later"}
    assert merged.with_study(study()).get(InitializationStudy) == study()
    assert Studies().over(new).get(InitializationStudy) == study("mlp")


def test_a_study_without_its_line_in_the_registry_is_refused_before_it_runs() -> None:
    with pytest.raises(
        TypeError, match=r'add a line "another": "AnotherStudy" to STUDIES in riskaudit/results/studies'
    ):
        type("AnotherStudy", (StudyRecord,), {"__module__": "riskaudit.studies.another.record"})
    with pytest.raises(TypeError, match='"elsewhere": "VerifyStudy"'):
        type("VerifyStudy", (StudyRecord,), {"__module__": "riskaudit.studies.elsewhere.record"})
    other = type("AnotherStudy", (StudyRecord,), {"__module__": "elsewhere"})
    for use in (lambda: Studies().with_study(other()), lambda: Studies().get(other)):
        with pytest.raises(TypeError, match='"NAME": "AnotherStudy"'):
            use()


def test_a_part_of_a_section_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    result = AuditResult.from_json(FIXTURE.read_text())
    build_document(result)
    monkeypatch.setattr(section, "PARTS", {"what-protects": lambda facts: []})
    with pytest.raises(
        ValueError, match=r"training/section.py names what-protects; sections are verdict, threat-model"
    ):
        build_document(result)
