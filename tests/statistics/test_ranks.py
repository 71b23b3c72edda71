"""Ranks, class means and claims about the most exposed, where numbers are intervals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import riskaudit
from riskaudit.cli.app import run
from riskaudit.cli.summary import print_summary
from riskaudit.linalg import Interval
from riskaudit.policy import Policy
from riskaudit.report import render
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult, Estimate, SampleRow, Studies, Thresholds
from riskaudit.results.ranks import num_rivals, rank_ranges
from riskaudit.results.verdicts import verdict
from riskaudit.sensitivity.estimates import WIDEST, interval
from riskaudit.statistics.summaries import class_rows, inequalities

AUDIT = Path(__file__).parents[2] / "reports" / "demo" / "audit.json"
_LEVELS = Thresholds(medium=0.1, high=0.5)


def _row(name: str, target: int, value: float | None, low: float | None = None, high: float | None = None) -> SampleRow:
    status = "exact" if low is None else "bracketed"
    revealed = Estimate(value=value, low=low, high=high, status=status)  # type: ignore[arg-type]
    return SampleRow(
        id=name,
        target=target,
        loss=0.0,
        status=revealed.status,
        proxies={"revealed_fraction": revealed},
        verdict="high",
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20, unique=True))
def test_exact_values_have_one_rank_each(values: list[float]) -> None:
    ranges = rank_ranges([(value, value) for value in values], "higher")
    order = sorted(values, reverse=True)
    assert ranges == [(order.index(value) + 1,) * 2 for value in values]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_every_truth_inside_the_intervals_has_its_rank_in_the_range(draws: list[tuple[float, float, float]]) -> None:
    ends = [(min(first, second), max(first, second)) for first, second, _ in draws]
    truths = [min(high, low + share * (high - low)) for (low, high), (_, _, share) in zip(ends, draws, strict=True)]
    for riskier, sign in (("higher", 1.0), ("lower", -1.0)):
        for truth, (first, last) in zip(truths, rank_ranges(ends, riskier), strict=True):
            ahead = sum(sign * other > sign * truth for other in truths)
            assert first <= ahead + 1 <= last


def test_intervals_that_overlap_leave_the_first_rank_open() -> None:
    ends = [(0.1, 0.4), (0.3, 0.6), (0.7, 0.9), (0.65, 0.8)]
    assert rank_ranges(ends, "higher") == [(3, 4), (3, 4), (1, 2), (1, 2)]
    assert num_rivals(ends, "higher") == 2
    assert rank_ranges(ends, "lower") == [(1, 2), (1, 2), (3, 4), (3, 4)]


def test_a_wide_interval_has_no_point_value_and_keeps_its_ends() -> None:
    for low, high, told in ((0.1, 0.1 + WIDEST, True), (0.1, 0.11 + WIDEST, False), (0.12, 0.999, False)):
        found = interval(Interval((low + high) / 2, low, high), "bracketed", nothing=(0.0, 1.0))
        assert (found.value is not None, found.low, found.high, found.status) == (told, low, high, "bracketed")
    errors = [interval(Interval(1.0, low, 1.0), "bracketed", nothing=(0.0, float("inf"))) for low in (0.2, 0.05)]
    assert [one.value for one in errors] == [1.0, None]


def test_a_wide_interval_is_judged_by_its_upper_end() -> None:
    wide = Estimate(value=None, low=0.12, high=0.999, status="bracketed")
    assert verdict(wide, _LEVELS, True) == "high"
    assert verdict(wide.model_copy(update={"high": 0.42}), _LEVELS, True) == "medium"
    assert verdict(wide.model_copy(update={"high": None}), _LEVELS, True) == "not_assessed"
    assert verdict(wide.model_copy(update={"status": "not_converged"}), _LEVELS, True) == "not_assessed"


def test_class_means_carry_the_samples_intervals() -> None:
    rows = [_row("a", 0, 0.2, 0.1, 0.3), _row("b", 0, None, 0.2, 0.8), _row("c", 1, 0.3)]
    first, second = (row.proxies["revealed_fraction"] for row in class_rows(rows, None, 0))
    assert (first.mean, first.mean_low, first.mean_high) == (0.2, 0.15000000000000002, 0.55)
    assert (second.mean_low, second.mean_high) == (0.3, 0.3)
    exact = class_rows([_row("a", 0, 0.2), _row("b", 1, 0.3)], None, 0)
    assert all(row.proxies["revealed_fraction"].mean_low is None for row in exact)


def test_the_most_exposed_is_not_named_for_certain_where_intervals_overlap() -> None:
    rows = [_row("a", 0, 0.2, 0.1, 0.3), _row("b", 0, None, 0.2, 0.8), _row("c", 1, 0.05, 0.0, 0.1)]
    found = inequalities(rows).proxies["revealed_fraction"]
    assert found.worst_samples == ["b", "a", "c"]
    assert found.note is not None
    assert "which of 2 samples" in found.note
    exact = inequalities([_row("a", 0, 0.2), _row("b", 0, 0.4)]).proxies["revealed_fraction"]
    assert exact.note is None


def _widened(result: AuditResult, low: float, high: float) -> AuditResult:
    """The audit with one interval for every sample, too wide for a point value."""
    ends = {
        "revealed_fraction": (low, high),
        "posterior_rmse": tuple(result.prior.std * math.sqrt(1 - end) for end in (high, low)),
    }
    wide = {name: Estimate(value=None, low=one[0], high=one[1], status="bracketed") for name, one in ends.items()}
    rows = [row.model_copy(update={"proxies": {**row.proxies, **wide}}) for row in result.samples]
    return recompute(result.model_copy(update={"samples": rows, "studies": Studies()}))[0]


def test_a_policy_decides_by_the_ends_of_wide_intervals() -> None:
    result = _widened(AuditResult.load(AUDIT), 0.12, 0.9)
    assert Policy(max_revealed=0.8).decide(result).decision == "block"
    assert Policy(max_revealed=0.95).decide(result).decision == "allow"


def test_reports_show_intervals_and_ranges_of_ranks() -> None:
    result = _widened(AuditResult.load(AUDIT), 0.12, 0.9)
    files = render(result, ("md", "csv", "html"))
    text = files["audit.md"].decode()
    assert "gives away 12" in text
    assert "0.120 to 0.900" in text
    assert f"ranks 1 to {len(result.samples)}" in text
    assert "Revealed fraction: not assessed" not in text
    header, *lines = files["samples.csv"].decode().splitlines()
    assert header.endswith(",ranks")
    assert all(line.endswith(f",1 to {len(result.samples)}") for line in lines)
    assert "too wide for a point value" in files["audit.html"].decode()


def test_exact_audits_have_no_ranges_of_ranks() -> None:
    files = render(AuditResult.load(AUDIT), ("md", "csv"))
    assert "ranks 1" not in files["audit.md"].decode()
    assert not files["samples.csv"].decode().splitlines()[0].endswith("ranks")


def test_a_console_shows_the_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(riskaudit.__file__).parent / "demo"
    words = [str(folder / "digits-lenet.safetensors"), "--data", str(folder / "digits.npz"), "--limit", "2"]
    few = ["--solver", "lanczos", "--max-matvecs", "2", "--release", "gaussian:0.01", "--prior-std", "0.3"]
    assert run(["scan", *words, *few, "--format", "json", "--out", str(tmp_path), "--quiet"]) == 0
    result = AuditResult.load(tmp_path / "audit.json")
    found = result.samples[0].proxies["revealed_fraction"]
    assert found.low is not None
    assert found.high is not None
    assert found.value is None
    assert found.high - found.low > WIDEST
    capsys.readouterr()
    print_summary(result, [])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("worst sample"))
    assert "unknown" not in line
    assert " to " in line
