"""Leak checks in audits: of every upload as it leaves, on the first page, in the CSV and in the policy."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from cases import digits
from torch import nn

import riskaudit
from riskaudit.errors import ResultError
from riskaudit.inputs import Samples
from riskaudit.policy import Policy
from riskaudit.report import render
from riskaudit.report.recomputation import recompute
from riskaudit.report.sections.protect import Recommendation
from riskaudit.results import AuditResult
from riskaudit.results.checks import CHECK_IDS, ids_in_the_clear
from riskaudit.results.facts import Facts


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()


def audit(release: str, count: int = 8, model: nn.Module | None = None, **options: object) -> AuditResult:
    batch = digits(count)
    samples = Samples.from_tensors(batch.inputs, batch.targets)
    options = {"proxies": ("revealed_fraction", "posterior_rmse"), **options}
    return riskaudit.audit(model or network(), samples, release=release, **options)


def test_samples_that_leave_alone_have_one_finding_together() -> None:
    result = audit("gradient,gaussian:0.0001", 4)
    (finding, *_) = [each for each in result.checks if each.id == "singleton-unit" and each.layer == "1"]
    assert (finding.status, finding.upload, finding.recovers) == ("leak", None, "input")
    assert finding.sample_ids == [row.id for row in result.samples]
    assert finding.predicted_rmse is not None
    assert set(finding.details["units"]) == set(finding.sample_ids)
    assert {each.id for each in result.checks} == set(CHECK_IDS)
    assert AuditResult.from_json(result.to_json()).checks == result.checks


def test_samples_that_the_noise_hides_have_one_finding_together() -> None:
    result = audit("gradient,gaussian:10", 4)
    found = [each for each in result.checks if each.id == "singleton-unit"]
    assert [(each.layer, each.status) for each in found] == [("1", "clear"), ("3", "clear")]
    assert set(found[0].details["error_by_noise"]) == {row.id for row in result.samples}
    assert min(found[0].details["error_by_noise"].values()) > 1


def test_every_upload_is_checked_by_itself() -> None:
    result = audit("mean:4,gaussian:0.00001", 8)
    found = [each for each in result.checks if each.id == "singleton-unit" and each.layer == "1"]
    assert [each.upload for each in found] == [0, 1]
    for number, each in enumerate(found):
        assert each.sample_ids
        assert set(each.sample_ids) <= {row.id for row in result.samples if row.upload == number}


def test_seen_on_the_first_page_in_the_console_and_in_the_csv() -> None:
    result = audit("mean:4,gaussian:0.00001", 8)
    files = render(result, ["md", "csv", "html"])
    ids = ids_in_the_clear(result.checks)
    words = f"{len(ids)} of 8 samples stand in the clear"
    page = next(content for name, content in files.items() if name.endswith(".html")).decode()
    assert words in page
    assert "What stands in the clear" in page
    assert words in next(content for name, content in files.items() if name.endswith(".md")).decode()
    table = next(content for name, content in files.items() if name.endswith(".csv")).decode()
    rows = list(csv.DictReader(table.splitlines()))
    assert {row["id"] for row in rows if "singleton-unit" in row["checks"].split()} == set(ids)


def test_a_first_layer_without_a_bias_stands_in_the_clear_up_to_a_factor() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48, bias=False), nn.ReLU(), nn.Linear(48, 10)).eval()
    result = audit("gradient,gaussian:1e-9", 4, model)
    page = render(result, ["md"])["audit.md"].decode()
    assert "4 of 4 samples stand in the clear: the input can be read off what leaves up to a factor" in page
    policy = Policy(forbid_checks=("singleton-unit",)).decide(result)
    assert (policy.decision, len(policy.exceeded)) == ("block", 4)
    (finding, *_) = audit("gradient", 4, model).checks
    # Digits that hold a white pixel are given whole.
    assert sum(finding.details["scale_known"].values()) == int((digits(4).inputs.flatten(1).amax(1) == 1).sum()) > 0


def decided(result: AuditResult, *forbidden: str) -> AuditResult:
    """With what a policy says that forbids checks and limits nothing else."""
    policy = Policy(forbid_checks=forbidden)
    return result.model_copy(update={"policy": policy.decide(result)})


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", ["gradient", "mean:4,gaussian:1e-5"])
@pytest.mark.parametrize("bias", [True, False])
def test_under_the_recommended_release_forbidden_checks_find_nothing(release: str, bias: bool) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48, bias=bias), nn.ReLU(), nn.Linear(48, 10)).eval()
    options = {"attacker": "outsider"} if "mean" in release else {}
    result = audit(release, 4, model, **options)
    # As if limits needed next to no noise, so that it is the checks' that counts.
    needs = [row.noise_std_for_target.model_copy(update={"std": 1e-12}) for row in result.samples]
    rows = [
        row.model_copy(update={"noise_std_for_target": need}) for row, need in zip(result.samples, needs, strict=True)
    ]
    result = result.model_copy(update={"samples": rows, "noise_needed": []})
    for forbidden in (("singleton-unit",), ("span",), ("head-features", "lone-contributor"), ("lone-contributor",)):
        before = Recommendation(Facts(decided(result, *forbidden)))
        assert before.obstacle is None
        assert before.release is not None
        again = audit(before.release, 4, model, **options)
        assert not [each for each in again.checks if each.id in forbidden and each.status == "leak"]


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        (None, "no noise is known under which the forbidden check labels finds nothing"),
        ([], "the forbidden check labels was not run"),
        ("failed", "the forbidden check labels could not be run on everything"),
    ],
)
def test_nothing_is_recommended_where_no_noise_is_known_to_do(checks, words) -> None:
    result = audit("mean:4,gaussian:0.001", 4, attacker="outsider")
    assert Recommendation(Facts(decided(result, "singleton-unit"))).release is not None
    if checks == "failed":
        checks = [each.model_copy(update={"status": "failed"}) for each in result.checks if each.id == "labels"]
    result = decided(result if checks is None else result.model_copy(update={"checks": checks}), "labels")
    assert Recommendation(Facts(result)).release is None
    page = render(result, ["md"])["audit.md"].decode()
    assert page.count(words[1:]) >= 2
    assert "Audit again with --release" not in page


def test_findings_that_were_added_or_removed_by_hand_are_named_and_never_allow() -> None:
    leaking, clear = audit("mean:4,gaussian:1e-5", 4), audit("mean:4,gaussian:10", 4)
    blocked, allowed = decided(leaking, "singleton-unit"), decided(clear, "singleton-unit")
    assert (blocked.policy.decision, allowed.policy.decision) == ("block", "allow")
    assert recompute(blocked)[1] == recompute(allowed)[1] == []
    without = [each for each in leaking.checks if each.id != "singleton-unit"]
    changed = [*without, *(each for each in clear.checks if each.id == "singleton-unit")]
    for result, findings in ((blocked, without), (blocked, changed), (allowed, leaking.checks), (allowed, without)):
        again, contradictions = recompute(result.model_copy(update={"checks": findings}))
        assert again.policy.decision == "block"
        assert len(contradictions) == 1
    # Blocked for another reason as well, the change is named all the same.
    over = Policy(max_revealed=0.0, forbid_checks=("singleton-unit",)).decide(leaking)
    again, contradictions = recompute(leaking.model_copy(update={"policy": over, "checks": changed}))
    assert again.policy.decision == "block"
    assert contradictions == ["the file says block for other findings of forbidden checks than it holds"]


def test_left_out_where_they_are_not_wanted() -> None:
    result = audit("mean:4,gaussian:0.01", 4, checks=False)
    assert result.checks == []
    page = next(iter(render(result, ["html"]).values())).decode()
    assert "not checked" in page
    # What wasn't checked is no clearance.
    assert Policy(forbid_checks=("singleton-unit",)).decide(result).decision == "block"


@pytest.mark.parametrize(("width", "activation", "decision"), [(48, nn.ReLU, "block"), (48, nn.Tanh, "allow")])
def test_a_policy_that_forbids_a_check_goes_by_it(width, activation, decision) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), activation(), nn.Linear(width, 10)).eval()
    result = audit("mean:4,gaussian:0.00001", 4, model)
    assert Policy(forbid_checks=("singleton-unit",)).decide(result).decision == decision


def test_batch_norm_with_the_statistics_of_the_batch() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10)).eval()
    result = audit("mean:4,gaussian:0.01", 4, model)
    statuses = {each.id: each.status for each in result.checks}
    assert statuses["batch-norm-buffers"] == "leak"
    assert statuses["lone-contributor"] == "not_applicable"
    assert "failed" not in statuses.values()
    # Sharing all parameters says that no buffers leave, and nothing else.
    shared = {each.id: each.status for each in audit("mean:4,share:*,gaussian:0.01", 4, model).checks}
    assert shared == {**statuses, "batch-norm-buffers": "clear"}


def test_findings_on_samples_that_are_not_there_are_refused() -> None:
    document = json.loads(audit("mean:4,gaussian:0.00001", 4).to_json())
    finding = next(each for each in document["checks"] if each["status"] == "leak")
    finding["sample_ids"] = ["<script>"]
    with pytest.raises(ResultError, match="samples that aren't there"):
        AuditResult.from_json(json.dumps(document))
