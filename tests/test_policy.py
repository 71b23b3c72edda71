"""The policy is a pure function of the result that fails closed."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from riskaudit.errors import SettingsError
from riskaudit.policy import Exposure, Policy, Range, class_gap
from riskaudit.results import AuditResult, Estimate, NoiseInfo, SampleRow
from riskaudit.results.checks import CheckFinding

BASE = AuditResult.load(Path(__file__).parent / "data" / "audit-schema1.json")
STATUSES = ["exact", "converged", "bracketed", "not_converged", "singular", "not_applicable", "failed"]
USABLE = {"exact", "converged", "bracketed"}


def row(number: int, revealed: Estimate | None, rmse: Estimate | None) -> SampleRow:
    proxies = {"revealed_fraction": revealed, "posterior_rmse": rmse}
    return BASE.samples[0].model_copy(
        update={"id": str(number), "proxies": {name: value for name, value in proxies.items() if value is not None}}
    )


def audit(*estimates: tuple[Estimate | None, Estimate | None], defended: bool = True) -> AuditResult:
    release = BASE.release.model_copy(
        update={"defended": defended, "noise": NoiseInfo(law="gaussian", std=1.0) if defended else None}
    )
    rows = [row(number, *pair) for number, pair in enumerate(estimates)]
    return BASE.model_copy(update={"samples": rows, "release": release})


def exact(value: float) -> Estimate:
    return Estimate(value=value, status="exact")


def test_within() -> None:
    outcome = Policy(max_revealed=0.2, min_rmse=0.1).decide(audit((exact(0.2), exact(0.1))), "limits.toml")
    assert (outcome.decision, outcome.exceeded) == ("allow", [])
    assert outcome.reasons == ["the sample is within the limits"]
    assert outcome.limits == {"max_revealed": 0.2, "min_rmse": 0.1}
    assert outcome.source == "limits.toml"


@pytest.mark.parametrize(
    ("policy", "revealed", "rmse"),
    [
        (Policy(max_revealed=0.2), 0.2000001, 9.0),
        (Policy(min_rmse=0.1), 0.0, 0.0999999),
        (Policy(max_revealed=0.2, min_rmse=0.1), 0.0, 0.05),
        (Policy(max_revealed=0.2, min_rmse=0.1), 0.3, 0.2),
    ],
    ids=["revealed", "rmse", "rmse-of-both", "revealed-of-both"],
)
def test_over(policy, revealed, rmse) -> None:
    outcome = policy.decide(audit((exact(0.0), exact(9.0)), (exact(revealed), exact(rmse))))
    assert (outcome.decision, outcome.exceeded) == ("block", ["1"])
    assert outcome.reasons[0].startswith("1 of 2 samples")


@pytest.mark.parametrize(
    ("policy", "estimates"),
    [
        (Policy(max_revealed=0.2), (Estimate(value=0.1, low=0.0, high=0.3, status="bracketed"), exact(1.0))),
        (Policy(min_rmse=0.1), (exact(0.0), Estimate(value=0.2, low=0.05, high=0.3, status="converged"))),
    ],
    ids=["revealed", "rmse"],
)
def test_the_cautious_end_of_an_interval_counts(policy, estimates) -> None:
    assert policy.decide(audit(estimates)).decision == "block"


def test_what_an_interval_leaves_open_is_said_of_nobody() -> None:
    open_ended, over = Estimate(value=0.1, low=0.0, high=0.3, status="bracketed"), exact(0.5)
    policy = Policy(max_revealed=0.2)
    (reason,) = policy.decide(audit((open_ended, exact(1.0)), (open_ended, exact(1.0)))).reasons
    assert reason == "2 of 2 samples may reveal more than 0.2 of the input"
    (reason,) = policy.decide(audit((open_ended, exact(1.0)), (over, exact(1.0)))).reasons
    assert reason == "1 of 2 samples reveal more than 0.2 of the input, and 1 more may"
    rmse = Estimate(value=0.2, low=0.05, high=0.3, status="converged")
    (reason,) = Policy(min_rmse=0.1).decide(audit((exact(0.0), rmse))).reasons
    assert reason == "1 of 1 sample may be reconstructed to an RMSE below 0.1"


def test_a_bracket_that_is_open_on_the_cautious_side_proves_nothing() -> None:
    revealed = Estimate(value=0.1, low=0.1, high=None, status="bracketed")
    rmse = Estimate(value=0.5, low=None, high=0.5, status="bracketed")
    assert Policy(max_revealed=0.2).decide(audit((revealed, exact(1.0)))).decision == "block"
    assert Policy(min_rmse=0.1).decide(audit((exact(0.0), rmse))).decision == "block"


@pytest.mark.parametrize("status", sorted(set(STATUSES) - USABLE))
@pytest.mark.parametrize("value", [0.0, None])
def test_an_unusable_number_is_over_the_limit(status, value) -> None:
    outcome = Policy(max_revealed=1.0).decide(audit((Estimate(value=value, status=status), exact(1.0))))
    assert (outcome.decision, outcome.exceeded) == ("block", ["0"])
    assert outcome.reasons == ["1 of 1 sample could not be assessed"]


def test_a_missing_proxy_is_over_the_limit() -> None:
    assert Policy(max_revealed=1.0).decide(audit((None, exact(1.0)))).decision == "block"


def test_only_the_limits_that_are_set_need_numbers() -> None:
    missing = Estimate(value=None, status="not_applicable")
    assert Policy(min_rmse=0.1).decide(audit((missing, exact(0.5)))).decision == "allow"


def test_undefended_is_over_every_limit() -> None:
    outcome = Policy(max_revealed=1.0).decide(audit((exact(0.0), exact(9.0)), defended=False))
    assert (outcome.decision, outcome.exceeded) == ("block", [])
    assert "undefended" in outcome.reasons[0]


def test_no_sample_is_no_proof() -> None:
    assert Policy(max_revealed=1.0).decide(audit()).decision == "block"


def test_no_limit_only_warns() -> None:
    assert Policy().decide(audit((exact(1.0), exact(0.0)))).decision == "warn"


numbers = st.none() | st.floats(0, 1)


@st.composite
def estimates(draw) -> Estimate:
    known = sorted(number for number in (draw(numbers), draw(numbers), draw(numbers)) if number is not None)
    low, value, high = (*known, None, None, None)[:3] if draw(st.booleans()) else (None, draw(numbers), None)
    return Estimate(value=value, low=low, high=high, status=draw(st.sampled_from(STATUSES)))


audits = st.builds(
    lambda pairs, defended: audit(*pairs, defended=defended),
    st.lists(st.tuples(st.none() | estimates(), st.none() | estimates()), max_size=4),
    st.booleans(),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(result=audits, max_revealed=numbers, min_rmse=numbers)
def test_allowed_means_that_every_sample_was_seen_within_every_limit(result, max_revealed, min_rmse) -> None:
    outcome = Policy(max_revealed, min_rmse).decide(result)
    if outcome.decision != "allow":
        return
    assert result.release.defended
    assert result.samples
    assert outcome.limits
    for sample, (proxy, limit, sign) in itertools.product(
        result.samples, (("revealed_fraction", max_revealed, 1), ("posterior_rmse", min_rmse, -1))
    ):
        if limit is not None:
            estimate = sample.proxies[proxy]
            assert estimate.status in USABLE
            cautious = estimate.high if sign == 1 else estimate.low
            if cautious is None:
                cautious = (1.0 if sign == 1 else 0.0) if estimate.status == "bracketed" else estimate.value
            assert sign * cautious <= sign * limit


@settings(max_examples=100, deadline=None)
@given(result=audits, limit=st.floats(0, 1), tighter=st.floats(0, 1))
def test_a_tighter_limit_never_allows_more(result, limit, tighter) -> None:
    tight, loose = min(limit, tighter), max(limit, tighter)
    if Policy(max_revealed=tight).decide(result).decision == "allow":
        assert Policy(max_revealed=loose).decide(result).decision == "allow"
    if Policy(min_rmse=loose).decide(result).decision == "allow":
        assert Policy(min_rmse=tight).decide(result).decision == "allow"


@pytest.mark.parametrize(
    "values", [{"max_revealed": 1.5}, {"max_revealed": -0.1}, {"min_rmse": -1}, {"min_rmse": float("inf")}], ids=str
)
def test_limits_out_of_range(values) -> None:
    with pytest.raises(SettingsError, match=next(iter(values))):
        Policy.from_mapping(values)


@pytest.mark.parametrize("value", ["0.2", True, None, [0.2]], ids=repr)
def test_limits_that_are_no_numbers(value) -> None:
    with pytest.raises(SettingsError, match=r"expected a .*max_revealed"):
        Policy.from_mapping({"max_revealed": value})


NOT_NUMBERS = [True, False, "0.5", [0.5], 0.5j, math.nan, math.inf, -math.inf, -1, -1e-9, 10**400, np.bool_(True)]
TOO_MUCH = {
    "max_revealed": [1.1], "max_class_gap": [2], "max_total_revealed": [1.0001], "max_unassessed": [1.5, None],
    "confidence": [0, 1e-300, 0.01, 0.4999, 1, 1.5, None], "budget_seconds": [0], "max_gradients": [0.0],
    "max_trainings": [0], "clip_norm": [0], "min_rmse": [],
}  # fmt: skip
NUMBERS = dict.fromkeys(TOO_MUCH, 0.75)


@pytest.mark.parametrize(("name", "value"), [(name, one) for name in TOO_MUCH for one in NOT_NUMBERS + TOO_MUCH[name]])
def test_every_number_is_one_and_in_range(name, value) -> None:
    others = {"max_revealed": 0.5} | ({"sanitiser": "clip"} if name == "clip_norm" else {})
    Policy(**(others | {name: NUMBERS[name]}))
    Policy(**(others | {name: np.float32(0.75)}))
    with pytest.raises(SettingsError, match=rf"expected .*{name}.*found "):
        Policy(**(others | {name: value}))


def test_the_table_of_numbers_is_whole() -> None:
    assert set(TOO_MUCH) == {
        one.name for one in fields(Policy) if not {"Literal", "tuple", "bool"} & set(re.findall(r"\w+", str(one.type)))
    }


def finding(status: str, *ids: str, check: str = "singleton-unit") -> CheckFinding:
    return CheckFinding.model_validate(
        {"id": check, "title": "", "status": status, "exactness": "exact", "recovers": "input", "sample_ids": ids}
    )


@pytest.mark.parametrize(
    ("checks", "decision", "exceeded"),
    [
        ([finding("leak", "b"), finding("leak", "b", "c"), finding("clear")], "block", ["b", "c"]),
        ([finding("clear"), finding("not_applicable")], "allow", []),
        ([finding("leak", "a", check="labels"), finding("clear")], "allow", []),
        ([finding("clear"), finding("failed")], "block", []),
        ([finding("leak", "a", check="labels")], "block", []),
        ([], "block", []),
    ],
    ids=["leak", "clear", "another", "failed", "not run", "no checks"],
)
def test_a_forbidden_check_is_not_outvoted(checks, decision, exceeded) -> None:
    """Every sample is far within the limit on average; a check that failed or wasn't run is no clearance."""
    within = [(exact(0.01), exact(9.0)), (exact(0.02), exact(9.0))]
    result = audit(*within).model_copy(update={"checks": checks})
    policy = Policy(max_revealed=0.9, forbid_checks=("singleton-unit",))
    outcome = policy.decide(result)
    assert (outcome.decision, outcome.exceeded) == (decision, exceeded)
    assert outcome.forbid_checks == ["singleton-unit"]
    assert Policy(forbid_checks=("singleton-unit",)).decide(result).decision == decision
    assert Policy(max_revealed=0.9).decide(result).decision == "allow"


def test_a_policy_names_checks_that_there_are() -> None:
    with pytest.raises(SettingsError, match="singleton-unit"):
        Policy(max_revealed=0.5, forbid_checks=("singleton",))


@settings(max_examples=50, deadline=None)
@given(st.floats(), st.sampled_from(sorted(TOO_MUCH)))
def test_what_a_policy_takes_is_finite(value, name) -> None:
    others = {"max_revealed": 0.5} | ({"sanitiser": "clip"} if name == "clip_norm" else {})
    try:
        policy = Policy(**(others | {name: value}))
    except SettingsError:
        return
    assert 0 <= getattr(policy, name) < math.inf


def test_a_gap_that_nobody_compared_is_told() -> None:
    one_class = [Exposure(str(place), "0", Range(0.0, 0.1)) for place in range(3)]
    alone, beside = (
        Policy(max_class_gap=0.2).judge(one_class),
        Policy(max_class_gap=0.2, max_revealed=0.5).judge(one_class),
    )
    assert "max_class_gap was not compared" in alone.reasons[0]
    assert beside.reasons == []
    assert "max_class_gap was not compared" in beside.notes[0]
    two = [*one_class, Exposure("3", "1", Range(0.0, 0.1))]
    both = Policy(max_class_gap=0.2, max_revealed=0.5).judge(two)
    assert (both.reasons, both.notes) == ([], [])


def test_unknown_limits_name_the_known() -> None:
    with pytest.raises(SettingsError, match=r"max_revealed, min_rmse, .*found 'max_leak'"):
        Policy.from_mapping({"max_leak": 1})


def test_a_sample_of_which_nothing_is_known_may_widen_the_gap_between_classes() -> None:
    known = [Exposure(str(place), str(place % 2), Range(0.0, 0.1)) for place in range(4)]
    assert class_gap(known) == pytest.approx(0.1)
    assert class_gap([*known[:3], Exposure("3", "1")]) == pytest.approx((0.1 + 1.0) / 2)
    policy = Policy(max_class_gap=0.2, max_unassessed=0.25)
    assert policy.judge(known).reasons == []
    assert policy.judge([*known[:3], Exposure("3", "1")]).reasons[0].startswith("classes may differ by 0.55")


def test_numbers_that_are_none_are_over_every_limit() -> None:
    nothing = Exposure("0", "0", Range(math.nan, math.nan), Range(math.nan, math.nan), Range(math.nan, math.nan))
    for policy in (Policy(max_revealed=1.0), Policy(min_rmse=0.0), Policy(max_total_revealed=1.0)):
        assert policy.judge([nothing]).exceeded == ["0"]
