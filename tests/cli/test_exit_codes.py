"""Exit codes 0 and 1: limits from options, policy files and configuration, and what fails closed."""

from __future__ import annotations

import pytest
from scan_cases import words

# With this noise the first two demo samples reveal 0.99 and 0.19 (posterior RMSE 0.004 and 0.35).
NOISY = ("--arch", "lenet", "--release", "gaussian:0.01")
# And with this much all but nothing.
PROTECTED = ("--arch", "lenet", "--release", "gaussian:1000")


def test_no_limit_is_0_even_where_all_leaks(scan) -> None:
    outcome = scan(*NOISY)
    assert (outcome.code, outcome.result.policy) == (0, None)
    assert max(outcome.values("revealed_fraction")) > 0.9


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("release", "limits", "code"),
    [
        (NOISY, ["--max-revealed", "0.2"], 1),
        (NOISY, ["--min-rmse", "0.1"], 1),
        (NOISY, ["--max-revealed", "1", "--min-rmse", "0"], 0),
        (NOISY, ["--max-revealed", "1", "--min-rmse", "0.1"], 1),
        (PROTECTED, ["--max-revealed", "0.2"], 0),
        (PROTECTED, ["--min-rmse", "0.1"], 0),
        (PROTECTED, ["--max-revealed", "0.2", "--min-rmse", "0.1"], 0),
        (PROTECTED, ["--max-revealed", "0"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, (list, tuple)) else str(value),
)
def test_limits_on_the_command_line(scan, release, limits, code) -> None:
    outcome = scan(*release, *limits)
    policy = outcome.result.policy
    assert outcome.code == code
    assert policy.decision == ("block" if code else "allow")
    assert policy.source == ", ".join(word for word in limits if word.startswith("--"))
    assert ("policy exceeded" if code else "within policy") in outcome.out


def test_exceeded_samples_are_named(scan) -> None:
    outcome = scan(*NOISY, "--max-revealed", "0.5")
    over = [row.id for row in outcome.result.samples if row.proxies["revealed_fraction"].value > 0.5]
    assert 0 < len(over) < 2
    assert outcome.result.policy.exceeded == over


POLICIES = {
    "bare": "max_revealed = 0.2\n",
    "table": "[policy]\nmax_revealed = 0.2\n",
    "tool-table": "[tool.riskaudit.policy]\nmax_revealed = 0.2\n",
    "whole-number": "[policy]\nmax_revealed = 0\n",
}


@pytest.mark.parametrize("case", POLICIES)
def test_policy_file(scan, tmp_path, case) -> None:
    (tmp_path / "limits.toml").write_text(POLICIES[case], encoding="utf-8")
    outcome = scan(*NOISY, "--policy", str(tmp_path / "limits.toml"))
    assert outcome.code == 1
    assert outcome.result.policy.source == "limits.toml"
    assert list(outcome.result.policy.limits) == ["max_revealed"]


def test_policy_file_that_allows(scan, tmp_path) -> None:
    (tmp_path / "limits.toml").write_text(POLICIES["bare"], encoding="utf-8")
    assert scan(*PROTECTED, "--policy", str(tmp_path / "limits.toml")).code == 0


def test_command_line_wins_over_the_policy_file(scan, tmp_path) -> None:
    (tmp_path / "limits.toml").write_text("max_revealed = 0.2\nmin_rmse = 0.0\n", encoding="utf-8")
    outcome = scan(*NOISY, "--policy", str(tmp_path / "limits.toml"), "--max-revealed", "1")
    assert outcome.code == 0
    assert outcome.result.policy.limits == {"max_revealed": 1.0, "min_rmse": 0.0}
    assert outcome.result.policy.source == "--max-revealed, limits.toml"


@pytest.mark.parametrize("name", ["riskaudit.toml", "pyproject.toml", "own.toml"])
def test_policy_in_the_configuration(scan, tmp_path, name) -> None:
    table = "[tool.riskaudit.policy]" if name == "pyproject.toml" else "[policy]"
    (tmp_path / "work" / name).write_text(f"{table}\nmax_revealed = 0.2\n", encoding="utf-8")
    outcome = scan(*NOISY, *(["--config", name] if name == "own.toml" else []))
    assert outcome.code == 1
    assert outcome.result.policy.source == name


def test_policy_file_wins_over_the_configuration_limit_by_limit(scan, tmp_path) -> None:
    (tmp_path / "work" / "riskaudit.toml").write_text("[policy]\nmax_revealed = 0.0\nmin_rmse = 9\n", encoding="utf-8")
    (tmp_path / "limits.toml").write_text("min_rmse = 0.0\n", encoding="utf-8")
    outcome = scan(*NOISY, "--policy", str(tmp_path / "limits.toml"))
    assert outcome.code == 1
    assert outcome.result.policy.limits == {"max_revealed": 0.0, "min_rmse": 0.0}
    assert outcome.result.policy.source == "riskaudit.toml, limits.toml"


@pytest.mark.parametrize("limits", [["--max-revealed", "1"], ["--min-rmse", "0"]], ids=" ".join)
def test_undefended_is_over_every_limit(scan, limits) -> None:
    outcome = scan(*limits)
    assert outcome.code == 1
    assert ["undefended: assume full disclosure" in one for one in outcome.result.policy.reasons] == [True]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("limits", [["--max-revealed", "1"], ["--min-rmse", "0"]], ids=" ".join)
@pytest.mark.parametrize(
    ("options", "status"),
    [(["--solver", "power"], "not_applicable"), (["--budget", "1e-9"], "not_converged")],
    ids=["power", "no-time"],
)
def test_what_was_not_assessed_is_over_every_limit(scan, options, status, limits) -> None:
    outcome = scan(*PROTECTED, *options, *limits)
    assert outcome.code == 1
    rows = outcome.result.samples
    assert {row.proxies["revealed_fraction"].status for row in rows} == {status}
    assert {row.verdict for row in rows} == {"not_assessed"}
    assert outcome.result.policy.exceeded == [row.id for row in rows]


def test_limits_hold_the_cautious_end_of_an_interval(scan) -> None:
    wide = ("--solver", "lanczos", "--max-matvecs", "3")
    rows = scan(*PROTECTED, *wide).result.samples
    worst = max(row.proxies["revealed_fraction"].high for row in rows)
    assert worst > max(row.proxies["revealed_fraction"].value for row in rows)
    assert scan(*PROTECTED, *wide, "--max-revealed", f"{worst * (1 + 1e-9)}").code == 0
    assert scan(*PROTECTED, *wide, "--max-revealed", f"{worst * (1 - 1e-6)}").code == 1


def test_the_report_of_a_refused_release_is_written_all_the_same(command) -> None:
    outcome = command(*words(*NOISY, "--max-revealed", "0.2", formats=("html", "md")))
    assert outcome.code == 1
    assert "Policy exceeded" in (outcome.folder / "audit.html").read_text(encoding="utf-8")
