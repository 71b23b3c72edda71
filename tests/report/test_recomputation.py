"""Conclusions are drawn from the numbers; a file that says otherwise is marked, one that can't be true refused."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import CASES
from report_reading import Report

from riskaudit.cli.app import run
from riskaudit.cli.options import in_options
from riskaudit.errors import ResultError
from riskaudit.report import render
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult, Estimate
from riskaudit.results.facts import Facts
from riskaudit.results.verdicts import verdict_of

AUDIT = Path(__file__).parents[2] / "reports" / "demo" / "audit.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found = json.loads(AUDIT.read_text())
    found["studies"] = {}
    return found


def _read(document: dict[str, Any]) -> tuple[AuditResult, list[str]]:
    return recompute(AuditResult.from_json(json.dumps(document)))


def _defended(document: dict[str, Any]) -> dict[str, Any]:
    """A policy that the first sample exceeds and a stored decision that says so."""
    changed = copy.deepcopy(document)
    changed["release"] |= {"defended": True, "noise": {"law": "gaussian", "std": 0.01}}
    result = AuditResult.from_json(json.dumps(changed))
    return json.loads(recompute(result)[0].to_json())


def test_an_untouched_audit_contradicts_nothing(document: dict[str, Any]) -> None:
    result, contradictions = _read(document)
    assert contradictions == []
    before = AuditResult.from_json(json.dumps(document))
    assert (result.samples, result.policy, result.noise_needed) == (before.samples, before.policy, before.noise_needed)


def test_a_flipped_verdict_is_decided_by_the_numbers(document: dict[str, Any], tmp_path: Path) -> None:
    changed = _defended(document)
    row = changed["samples"][0]
    row["proxies"]["revealed_fraction"] = {"value": 0.9, "low": None, "high": None, "status": "exact"}
    row["proxies"]["posterior_rmse"] = {"value": changed["prior"]["std"] * 0.1**0.5, "status": "exact"}
    row["verdict"] = "low"
    result, contradictions = _read(changed)
    assert result.samples[0].verdict == "high"
    assert re.search("file says low, .*numbers say high", contradictions[0])
    (tmp_path / "audit.json").write_text(json.dumps(changed))
    code = run(["report", str(tmp_path / "audit.json"), "--out", str(tmp_path / "out"), "--format", "md"])
    assert code == 1
    assert "disagrees with its own numbers" in (tmp_path / "out" / "audit.md").read_text().splitlines()[0]
    # From Python the same bytes but for the names of options, and in every format the same conclusion.
    files = render(AuditResult.from_json(json.dumps(changed)), ("md", "json", "csv"), spelling=in_options)
    assert files["audit.md"] == (tmp_path / "out" / "audit.md").read_bytes()
    assert AuditResult.from_json(files["audit.json"]).samples[0].verdict == "high"
    assert b"high" in files["samples.csv"].splitlines()[1]


def test_a_decision_that_the_numbers_refute(document: dict[str, Any]) -> None:
    changed = _defended(document)
    highest = max(row["proxies"]["revealed_fraction"]["value"] or 0 for row in changed["samples"])
    changed["policy"] = {
        "decision": "allow", "reasons": ["fine"], "limits": {"max_revealed": highest / 2}, "source": "policy.toml",
    }  # fmt: skip
    result, contradictions = _read(changed)
    assert result.policy is not None
    assert result.policy.decision == "block"
    assert any(re.search("file says allow, .*numbers say block", one) for one in contradictions)
    changed["policy"]["limits"] = {"max_revaeled": 1.0}
    assert _read(changed)[0].policy.decision == "block"  # type: ignore[union-attr]


def test_a_stricter_decision_stands(document: dict[str, Any]) -> None:
    changed = _defended(document)
    changed["policy"] = {
        "decision": "block", "reasons": ["another check"], "limits": {"max_revealed": 1.0}, "source": "x",
    }  # fmt: skip
    result, contradictions = _read(changed)
    assert result.policy is not None
    assert result.policy.decision == "block"
    assert len(contradictions) == 1


def test_class_means_and_worst_samples_are_those_of_the_rows(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    changed["classes"][0]["proxies"]["revealed_fraction"]["mean"] /= 2
    changed["fairness"]["proxies"]["revealed_fraction"]["worst_samples"][0] = changed["samples"][-1]["id"] + "?"
    result, contradictions = _read(changed)
    assert len(contradictions) == 2
    assert result.classes == _read(document)[0].classes


def test_numbers_that_exclude_each_other_claim_nothing(document: dict[str, Any]) -> None:
    changed = _defended(document)
    changed["samples"][0]["proxies"]["posterior_rmse"]["value"] = 0.9 * changed["prior"]["std"]
    changed["samples"][0]["verdict"] = "low"
    result, contradictions = _read(changed)
    assert result.samples[0].verdict == "not_assessed"
    assert any("exclude each other" in one for one in contradictions)


def test_ids_that_repeat_are_marked(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    changed["samples"][1]["id"] = changed["samples"][0]["id"]
    assert any("the id of another" in one for one in _read(changed)[1])


def test_targets_that_are_private_are_left_out(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    changed["samples"][0] |= {"target": [0.123456789, 0.5], "image_png": None}
    changed["classes"] = []
    result, _ = _read(changed)
    assert result.samples[0].target is None
    for content in render(result, ["json", "csv", "md"]).values():
        assert b"0.123456789" not in content


def _set(path: str, value: Any):  # type: ignore[no-untyped-def]
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = document
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("samples.0.proxies.revealed_fraction.value", 1.5), "outside its range"),
        (_set("samples.0.proxies.revealed_fraction", {"value": None, "status": "exact"}), "no value, called exact"),
        (
            _set("samples.0.proxies.map_rmse", {"value": 0.5, "low": 0.1, "high": 0.2, "status": "bracketed"}),
            "outside its interval",
        ),
        (
            _set("samples.0.proxies.map_rmse", {"value": 0.15, "low": 0.2, "high": 0.1, "status": "bracketed"}),
            "wrong order",
        ),
        (_set("settings.thresholds", {"high": 0.1, "medium": 0.5}), "thresholds out of order"),
        (_set("prior.std", 0.0), "a prior of standard deviation 0"),
        (_set("release", {"steps": [], "noise": None, "defended": True}), "has no noise"),
    ],
)
def test_numbers_that_cannot_be_are_refused(document: dict[str, Any], change: Any, words: str, tmp_path: Path) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(ResultError, match=words):
        AuditResult.from_json(json.dumps(changed))
    (tmp_path / "audit.json").write_text(json.dumps(changed))
    assert run(["report", str(tmp_path / "audit.json"), "--out", str(tmp_path), "--format", "md"]) == 2


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in children for place in _places(inner, (*path, key)))]


_WRONG = (
    None, True, -1, 0, 0.5, 1, 1e308, -1e-300, 10**400, "", "low", "allow", "exact", "x" * 10_000, "\u202e", [], {},
    [1],
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_mutations_never_pass_for_safe(random_: random.Random, number: int) -> None:
    changed = json.loads(AUDIT.read_text())
    changed["samples"] = changed["samples"][:6]
    changed["studies"] = {}
    for _ in range(number):
        places = [place for place in _places(changed) if place]
        *parents, last = random_.choice(places)
        parent: Any = changed
        for key in parents:
            parent = parent[key]
        if random_.random() < 0.3:
            del parent[last]
        else:
            parent[last] = random_.choice(_WRONG)
    try:
        result, _ = _read(changed)
    except ResultError:
        return
    for row in result.samples:
        own = verdict_of(row, result.settings.thresholds, result.release.defended)
        assert row.verdict in {own, "not_assessed"}
        if row.verdict == "low":
            headline = row.proxies["revealed_fraction"]
            assert headline.value is not None
            assert max(headline.value, headline.high or 0.0) < result.settings.thresholds.medium
    render(result, ["json", "csv", "md"])


def test_overlapping_intervals_leave_the_rank_open(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    for row, (value, low, high) in zip(
        changed["samples"], [(0.5, 0.4, 0.6), (0.45, 0.38, 0.55), (0.1, 0.05, 0.2)], strict=False
    ):
        row["proxies"]["revealed_fraction"] = {"value": value, "low": low, "high": high, "status": "bracketed"}
        row["proxies"].pop("posterior_rmse")
    changed["samples"], changed["checks"] = changed["samples"][:3], []
    result = AuditResult.from_json(json.dumps(changed))
    assert "leave open which of 2 samples" in Report.of(result).text
    changed["samples"][1]["proxies"]["revealed_fraction"]["high"] = 0.39
    changed["samples"][1]["proxies"]["revealed_fraction"]["value"] = 0.385
    result = AuditResult.from_json(json.dumps(changed))
    assert "leave open which" not in Report.of(result).text


@pytest.mark.parametrize(("proxy", "worst"), [("revealed_fraction", max), ("posterior_rmse", min)])
def test_no_file_says_which_end_of_what_decides_is_the_greater_risk(proxy: str, worst: Any) -> None:
    honest = CASES["defended"]()
    interval = Estimate(value=None, low=0.1, high=0.2, status="bracketed")
    rows = [row.model_copy(update={"proxies": {**row.proxies, proxy: interval}}) for row in honest.samples]
    other = {"higher": "lower", "lower": "higher"}
    turned = [info.model_copy(update={"riskier": other[info.riskier]}) for info in honest.proxies]
    for infos in (honest.proxies, turned, []):
        ends = Facts(honest.model_copy(update={"samples": rows, "proxies": infos})).cautious(proxy)
        assert ends == [worst(0.1, 0.2)] * len(rows)
