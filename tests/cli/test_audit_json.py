"""audit.json keeps the contract of schema 1: names, order, plain numbers, verdicts; old files keep loading."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from scan_cases import FORMATS, PROXY_IDS
from scan_cases import words as scan_words

from riskaudit import __version__
from riskaudit.cli.models import SubjectOptions
from riskaudit.errors import ResultError
from riskaudit.report import FILE_NAMES, render
from riskaudit.results import AuditResult

OLD_AUDITS = Path(__file__).parents[1] / "data"
TOP_LEVEL = {
    "schema_version", "tool", "created_at", "checkpoint", "data", "release", "prior", "settings", "cost", "samples",
    "classes", "fairness", "studies", "policy", "warnings",
}  # fmt: skip


def test_top_level(complete) -> None:
    document = complete.document
    assert set(document) >= TOP_LEVEL
    assert (document["schema_version"], document["studies"], document["policy"]) == (1, {}, None)
    assert document["tool"] == {"name": "riskaudit", "version": __version__}
    assert document["created_at"].endswith("Z")


def test_what_was_audited(complete) -> None:
    document = complete.document
    assert document["checkpoint"]["name"] == "digits-lenet.safetensors"
    assert len(document["checkpoint"]["sha256"]) == len(document["data"]["sha256"]) == 64
    assert document["data"]["input_shape"] == [1, 8, 8]
    assert document["data"]["num_samples"] == len(document["samples"]) == 20
    assert document["data"]["input_range"] == [0.0, 1.0]
    assert document["settings"].items() >= {
        "seed": 0, "device": "cpu", "dtype": "float64", "solver": "dense", "inverse": "dense",
    }.items()  # fmt: skip
    assert document["cost"]["matvecs"] == 20 * 64
    assert document["cost"]["peak_memory_bytes"] > 2**20


def test_release(complete, scan) -> None:
    release = complete.document["release"]
    assert release["steps"] == ["gradient", "gaussian"]
    assert release["noise"] == {"law": "gaussian", "std": 0.01}
    assert (release["defended"], release["coupling"]) == (True, "per_sample")
    release = scan("--release", "clip:1,prune:0.1,laplace:0.5").document["release"]
    assert release["steps"] == ["gradient", "clip", "prune", "laplace"]
    assert release["noise"] == {"law": "laplace", "std": pytest.approx(0.5 * 2**0.5)}


def test_undefended_release(scan) -> None:
    release = scan("--reference-noise", "0.02").document["release"]
    assert (release["noise"], release["defended"], release["reference_noise_std"]) == (None, False, 0.02)


@pytest.mark.parametrize("solver", ["dense", "lanczos", "power"])
def test_every_sample_has_every_proxy_with_four_keys(scan, solver) -> None:
    document = scan("--release", "gaussian:0.01", "--solver", solver, limit=3).document
    assert [info["id"] for info in document["proxies"]] == PROXY_IDS
    for index, row in enumerate(document["samples"]):
        assert row["id"] == str(index)
        assert list(row["proxies"]) == PROXY_IDS
        for estimate in row["proxies"].values():
            assert list(estimate) == ["value", "low", "high", "status"]
            assert estimate["value"] is not None or estimate["status"] not in ("exact", "converged")
    explained = {info["id"] for info in document["proxies"] if info["reason"]}
    estimates = [(name, estimate) for row in document["samples"] for name, estimate in row["proxies"].items()]
    assert explained >= {name for name, estimate in estimates if estimate["status"] == "not_applicable"}
    assert explained <= {name for name, estimate in estimates if estimate["value"] is None}


def test_what_made_the_numbers_is_recorded(scan) -> None:
    options = ("--solver", "lanczos", "--precision", "0.5", "--budget", "600", "--confidence", "0.9")
    document = scan("--release", "gaussian:0.01", *options, limit=2).document
    settings = document["settings"]
    assert (settings["precision"], settings["budget_seconds"], settings["confidence"]) == (0.5, 600.0, 0.9)
    assert settings["jacobian"] == "structured"
    assert "Conv2d" in settings["jacobian_reason"]
    assert settings["inverse"] == "quadrature"


@pytest.mark.parametrize("words", [("scan",), ("study", "fairness")], ids=" ".join)
def test_a_budget_counts_the_reading(scan, command, monkeypatch, words) -> None:
    """Reading takes all of it, as far as the clock says: nothing is assessed, nothing counts as safe."""
    original, late = time.monotonic, [0.0]
    read = SubjectOptions.load

    def load_slowly(*arguments: Any) -> Any:
        late[0] = 700.0
        return read(*arguments)

    monkeypatch.setattr(SubjectOptions, "load", load_slowly)
    monkeypatch.setattr(time, "monotonic", lambda: original() + late[0])
    line = scan_words("--release", "gaussian:1", "--budget", "600", "--no-checks", limit=2)
    assert line[0] == "scan"
    document = command(*words, *line[1:]).document
    assert {row["verdict"] for row in document["samples"]} == {"not_assessed"}
    assert any("not assessed, not safe" in warning for warning in document["warnings"])


def test_intervals_narrow_what_dense_pins_down(scan) -> None:
    """The same samples and noise, once by brackets and once exactly."""
    bracketed = scan("--release", "gaussian:0.01", "--solver", "lanczos", limit=4)
    exact = scan("--release", "gaussian:0.01", limit=4)
    for found, truth in zip(bracketed.result.samples, exact.result.samples, strict=True):
        for name, estimate in found.proxies.items():
            value = truth.proxies[name].value
            if value is not None:
                assert (estimate.low or 0.0) <= value * (1 + 1e-7), name
                assert estimate.high is None or value <= estimate.high * (1 + 1e-7), name
        assert found.proxies["revealed_fraction"].high - found.proxies["revealed_fraction"].low < 0.5
        assert found.noise_std_for_target.status == "bracketed"
        assert found.noise_std_for_target.std >= truth.noise_std_for_target.std
        order = ["low", "medium", "high"]
        assert order.index(found.verdict) >= order.index(truth.verdict)
    for found, truth in zip(bracketed.result.noise_needed, exact.result.noise_needed, strict=True):
        assert (found.max_revealed, found.status) == (truth.max_revealed, "bracketed")
        assert found.std >= truth.std


def test_only_the_proxies_asked_for(scan) -> None:
    document = scan("--release", "gaussian:0.01", "--proxies", "gradient_norm, lavp_l2_max", limit=2).document
    assert document["settings"]["solver"] == "lanczos"
    for row in document["samples"]:
        assert list(row["proxies"]) == PROXY_IDS
        valued = {name for name, estimate in row["proxies"].items() if estimate["value"] is not None}
        assert valued == {"gradient_norm", "lavp_l2_max"}
        assert row["verdict"] == "not_assessed"
    assert document["noise_curve"] == []
    # Nothing is spent on what wasn't asked for.
    assert document["cost"]["matvecs"] == sum(
        row["solvers"]["largest_eigenvalue"]["matvecs"] for row in document["samples"]
    )
    assert scan("--release", "gaussian:0.01", "--proxies", "gradient_norm", limit=2).document["cost"]["matvecs"] == 0


def test_intervals_hold_their_values(complete) -> None:
    for row in complete.result.samples:
        for name, estimate in row.proxies.items():
            ends = [end for end in (estimate.low, estimate.value, estimate.high) if end is not None]
            assert ends == sorted(ends), (row.id, name)
        assert row.proxies["i2f_lower_bound"].value <= row.proxies["i2f"].value * (1 + 1e-9)
        assert 0 <= row.proxies["revealed_fraction"].value <= 1
        assert row.proxies["posterior_rmse"].value <= complete.result.prior.std


@pytest.mark.parametrize(("high", "medium"), [(0.5, 0.1), (0.2, 0.2), (0.15, 0.0), (1.0, 0.5)])
def test_verdicts_follow_from_the_thresholds(scan, high, medium) -> None:
    outcome = scan("--release", "gaussian:0.01", f"--high-above={high}", f"--medium-above={medium}", limit=6)
    assert outcome.result.settings.thresholds.model_dump() == {"high": high, "medium": medium}
    for row in outcome.result.samples:
        revealed = row.proxies["revealed_fraction"].value
        expected = "high" if revealed > high else "medium" if revealed >= medium else "low"
        assert row.verdict == expected, revealed


def test_the_demo_shows_several_verdicts(complete) -> None:
    assert len({row.verdict for row in complete.result.samples}) > 1


def test_noise_for_the_target_holds_when_audited(scan) -> None:
    outcome = scan("--arch", "lenet", "--target-rmse", "0.15", limit=2)
    needed = [row.noise_std_for_target for row in outcome.result.samples]
    assert [need.target_rmse for need in needed] == [0.15, 0.15]
    for index, need in enumerate(needed):
        again = scan("--release", f"gaussian:{need.std!r}", limit=2)
        assert again.values("posterior_rmse")[index] == pytest.approx(0.15, rel=1e-6)


def test_the_target_is_half_the_prior_unless_given(complete) -> None:
    result = complete.result
    assert result.settings.target_rmse == result.prior.std / 2
    assert {row.noise_std_for_target.target_rmse for row in result.samples} == {result.prior.std / 2}


def test_noise_curve_rises_and_falls(complete) -> None:
    curve = complete.result.noise_curve
    assert len(curve) > 10
    for before, after in itertools.pairwise(curve):
        assert before.std < after.std
        assert before.revealed_fraction_mean >= after.revealed_fraction_mean
        assert before.revealed_fraction_max >= after.revealed_fraction_max
        assert before.posterior_rmse_mean <= after.posterior_rmse_mean
        assert before.posterior_rmse_min <= after.posterior_rmse_min
    assert curve[0].revealed_fraction_mean > 0.9 * 0.5
    assert curve[-1].revealed_fraction_max < 0.1


def test_loads_and_saves_as_it_was(complete, tmp_path) -> None:
    complete.result.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (complete.folder / "audit.json").read_bytes()


def test_the_command_on_record_reproduces_the_audit(complete) -> None:
    assert complete.result.command == (
        "riskaudit scan digits-lenet.safetensors --data digits.npz --limit 20 --release gaussian:0.01"
    )


@pytest.mark.parametrize("path", sorted(OLD_AUDITS.glob("audit-schema*.json")), ids=lambda path: path.stem)
def test_old_audits_load_and_render(path) -> None:
    result = AuditResult.load(path)
    written = [list(row["proxies"]) for row in json.loads(path.read_text())["samples"]]
    assert [list(row.proxies) for row in result.samples] == written
    # A proxy of a later version isn't in it.
    assert all(set(proxies) <= set(PROXY_IDS) for proxies in written)
    files = render(result, FORMATS)
    assert set(files) == set(FILE_NAMES.values())
    assert all(row.id.encode() in files["samples.csv"] for row in result.samples)
    assert b"digits-lenet.safetensors" in files["audit.html"]


def test_there_is_an_old_audit_of_every_schema() -> None:
    assert (OLD_AUDITS / "audit-schema1.json").is_file()


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1]])
def test_unknown_schema_versions_are_refused(version) -> None:
    document = json.loads((OLD_AUDITS / "audit-schema1.json").read_text(encoding="utf-8"))
    with pytest.raises(ResultError, match=r"expected schema_version 1 in audit\.json, found"):
        AuditResult.from_json(json.dumps(document | {"schema_version": version}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(number) -> None:
    text = (OLD_AUDITS / "audit-schema1.json").read_text(encoding="utf-8")
    document = json.loads(text)
    old = json.dumps(document["samples"][0]["loss"])
    with pytest.raises(ResultError, match=r"samples\.0\.loss"):
        AuditResult.from_json(text.replace(f'"loss": {old}', f'"loss": {number}', 1))


def test_unknown_keys_of_later_versions_are_passed_over() -> None:
    document = json.loads((OLD_AUDITS / "audit-schema1.json").read_text(encoding="utf-8"))
    document |= {"moon_phase": "full"}
    document["samples"][0]["mood"] = "calm"
    assert AuditResult.from_json(json.dumps(document)) == AuditResult.load(OLD_AUDITS / "audit-schema1.json")


def design_example() -> str:
    """The example of the design document, its proxies written out."""
    estimate = {"value": 26.1, "low": None, "high": None, "status": "exact"}
    return json.dumps(
        {
            "schema_version": 1,
            "tool": {"name": "riskaudit", "version": "0.1.0"},
            "created_at": "…Z",
            "checkpoint": {"name": "lenet.pt", "sha256": "…", "architecture": "lenet", "num_parameters": 17038},
            "data": {
                "name": "mnist.npz", "sha256": "…", "num_samples": 8, "input_shape": [1, 28, 28],
                "input_range": [0.0, 1.0], "class_names": ["0", "…"],
            },
            "release": {
                "steps": ["gradient", "gaussian"], "noise": {"law": "gaussian", "std": 0.001}, "defended": True,
                "coupling": "per_sample",
            },
            "prior": {"kind": "isotropic", "mean": 0.13, "std": 0.31},
            "settings": {"seed": 0, "device": "cpu", "dtype": "float64", "solver": "dense", "inverse": "dense"},
            "cost": {"seconds": 1.2, "matvecs": 784, "peak_memory_bytes": 1},
            "samples": [
                {
                    "id": "0", "target": 7, "loss": 2.31, "status": "exact", "reason": None,
                    "proxies": dict.fromkeys(PROXY_IDS, estimate) | {"revealed_fraction": estimate | {"value": 0.9}},
                    "noise_std_for_target": {"target_rmse": 0.1, "std": 0.011}, "verdict": "high",
                }
            ],
            "classes": [
                {
                    "target": 7, "name": "7", "num_samples": 1,
                    "proxies": {"revealed_fraction": {"mean": 0.9, "min": 0.9, "max": 0.9}},
                }
            ],
            "fairness": {}, "studies": {}, "policy": None, "warnings": [],
        }
    )  # fmt: skip


def test_the_example_of_the_design_loads_and_renders() -> None:
    result = AuditResult.from_json(design_example())
    assert result.samples[0].noise_std_for_target.std == 0.011
    assert set(render(result, FORMATS)) == set(FILE_NAMES.values())
