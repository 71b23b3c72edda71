"""Fairness studies of synthetic audits, against scipy and by hand, and of a real one with attacks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from study_cases import NOISE, digits, network

from riskaudit.audit import AuditSettings
from riskaudit.results import (
    AuditResult,
    CheckpointInfo,
    Cost,
    DataInfo,
    Estimate,
    NoiseInfo,
    PriorInfo,
    ReleaseInfo,
    SampleRow,
    Settings,
    SolverEvidence,
    Tool,
)
from riskaudit.statistics.summaries import gini
from riskaudit.studies.base import StudyRun
from riskaudit.studies.fairness.record import FairnessStudy
from riskaudit.studies.fairness.run import fairness, fairness_study, with_fairness
from riskaudit.studies.rows import strongest
from riskaudit.studies.verify.record import VerifyStudy


def row(place: int, rmse: float | Estimate | None, revealed: float | None = None, **changes: Any) -> SampleRow:
    """A sample of class place % 3."""
    error = rmse if isinstance(rmse, Estimate) else estimate(rmse)
    share = 1 - error.value if revealed is None and error.value is not None else revealed
    fields: dict[str, Any] = {
        "id": str(place), "target": place % 3, "loss": 1.0, "status": "exact", "verdict": "low",
        "proxies": {"posterior_rmse": error, "revealed_fraction": estimate(share)},
        "solvers": {"largest_eigenvalue": SolverEvidence(method="dense", status="exact", value=4.0, high=4.0)},
    }  # fmt: skip
    return SampleRow(**(fields | changes))


def estimate(value: float | None, status: str = "exact", **ends: float) -> Estimate:
    return Estimate(value=value, status=status if value is not None else "not_converged", **ends)  # type: ignore[arg-type]


def audited(rows: Sequence[SampleRow], **changes: Any) -> AuditResult:
    fields: dict[str, Any] = {
        "tool": Tool(version="0"),
        "created_at": "2026-03-04T10:20:30Z",
        "checkpoint": CheckpointInfo(name="a.pt", sha256=None, architecture="mlp", num_parameters=1),
        "data": DataInfo(name="a.npz", sha256=None, num_samples=len(rows), input_shape=[4], input_range=[0.0, 1.0]),
        "release": ReleaseInfo(
            steps=["gaussian"], spec="gaussian:0.7", noise=NoiseInfo(law="gaussian", std=0.7), defended=True
        ),
        "prior": PriorInfo(kind="isotropic", mean=0.5, std=0.3),
        "settings": Settings(seed=0, device="cpu", dtype="float64", solver="dense", inverse="dense"),
        "cost": Cost(seconds=1.0, matvecs=1, peak_memory_bytes=None),
        "samples": list(rows),
    }
    return AuditResult(**(fields | changes))


def of(errors: Sequence[float | Estimate | None], **changes: Any) -> FairnessStudy:
    return fairness(audited([row(place, error) for place, error in enumerate(errors)], **changes))


def comparison(study: FairnessStudy, measure: str = "posterior_rmse", by: str = "class"):
    return next(one for one in study.comparisons if (one.by, one.measure) == (by, measure))


def test_distributions_by_hand() -> None:
    errors = [0.1, 0.2, 0.3, 0.4, 0.5]
    revealed, error = of(errors).distributions
    assert (revealed.measure, revealed.riskier, revealed.worst_sample) == ("revealed_fraction", "higher", "0")
    assert (error.measure, error.riskier, error.worst, error.worst_sample) == ("posterior_rmse", "lower", 0.1, "0")
    assert (error.mean, error.median, error.num_samples, error.num_left_out) == (pytest.approx(0.3), 0.3, 5, 0)
    assert error.worst_to_median == pytest.approx(1 / 3)
    assert revealed.worst_to_median == pytest.approx(0.9 / 0.7)
    assert error.gini == pytest.approx(gini(errors))
    assert error.worst_tenth_share == pytest.approx(0.5 * 0.1 / 1.5)
    assert [(point.samples, point.quantity) for point in error.lorenz][1] == pytest.approx((0.2, 0.1 / 1.5))


def test_classes_are_compared_as_by_scipy() -> None:
    rng = np.random.default_rng(0)
    errors = [float(rng.uniform(0.1, 0.2) + 0.3 * (place % 3 == 1)) for place in range(60)]
    found = comparison(of(errors))
    groups = [[error for place, error in enumerate(errors) if place % 3 == target] for target in range(3)]
    expected = stats.kruskal(*groups)
    assert found.kruskal_wallis.p_value == pytest.approx(expected.pvalue)
    assert found.epsilon_squared == pytest.approx(expected.statistic / 59)
    assert found.differs
    assert {pair.first for pair in found.pairs if pair.differs} | {
        pair.second for pair in found.pairs if pair.differs
    } == {"0", "1", "2"}
    apart = [pair for pair in found.pairs if pair.differs]
    assert len(apart) == 2
    assert all(abs(pair.effect) == 1 and "1" in (pair.first, pair.second) for pair in apart)
    # The least error is the riskiest, so class 1 comes last.
    assert found.groups[-1].name == "1"
    assert found.groups[0].median == pytest.approx(np.median(groups[int(found.groups[0].name)]))


def test_no_pair_differs_where_the_classes_do_not() -> None:
    rng = np.random.default_rng(3)
    found = comparison(of(list(rng.uniform(0.1, 0.2, 60))))
    assert found.kruskal_wallis.p_value > 0.05
    assert found.differs is False
    assert not any(pair.differs for pair in found.pairs)


def test_few_samples_that_no_pair_could_tell_apart_are_named() -> None:
    errors = [0.01 * place + 0.5 * (place % 10) for place in range(60)]
    rows = [row(place, error, revealed=0.5, target=place % 10) for place, error in enumerate(errors)]
    found = comparison(fairness(audited(rows)))
    assert found.differs
    assert not any(pair.differs for pair in found.pairs)
    assert "45 pairs" in found.note


def test_the_cautious_end_decides_who_is_exposed() -> None:
    errors = [Estimate(value=0.3, low=0.01, high=0.4, status="bracketed"), *[0.3] * 9]
    study = of(errors)
    assert study.average_protection == pytest.approx(0.3)
    assert study.exposed == ["0"]
    assert study.samples[0].protection == 0.01
    assert study.samples[0].share_of_average == pytest.approx(0.01 / 0.3)
    assert of([0.3] * 10).exposed == []


def test_a_calibration_lowers_protection_or_leaves_it_open() -> None:
    lower = Estimate(value=0.3, low=0.02, high=0.5, status="exact")
    rows = [row(0, 0.3, calibrated={"posterior_rmse": lower}), *(row(place, 0.3) for place in range(1, 6))]
    assert fairness(audited(rows)).exposed == ["0"]
    open_end = lower.model_copy(update={"low": None})
    rows[0] = row(0, 0.3, calibrated={"posterior_rmse": open_end})
    assert fairness(audited(rows)).not_assessed == ["0"]


@pytest.mark.parametrize("status", ["not_converged", "failed", "singular", "not_applicable"])
def test_what_is_not_reliable_is_not_assessed_and_counts_for_nothing(status: Any) -> None:
    study = of([Estimate(value=9.0, low=8.0, status=status), 0.3, 0.2])
    assert study.not_assessed == ["0"]
    assert study.samples[0].protection is None
    assert study.average_protection == pytest.approx(0.25)
    error = study.distributions[1]
    assert (error.num_samples, error.num_left_out) == (2, 1)


def test_nothing_is_known() -> None:
    study = of([None, None])
    assert study.average_protection is None
    assert study.not_assessed == ["0", "1"]
    assert all(one.num_samples == 0 and one.note for one in study.distributions)
    assert all(one.differs is None and not one.pairs for one in study.comparisons)
    assert study.influence.spearman is None


def test_one_sample() -> None:
    study = of([0.3])
    assert study.distributions[1].gini == 0
    assert "too few samples" in study.distributions[1].note
    assert comparison(study).differs is None
    assert comparison(study).kruskal_wallis.status == "not_applicable"
    assert study.influence.note.startswith("too few samples")


def test_one_class_is_compared_with_nothing() -> None:
    study = fairness(audited([row(place, 0.1 + 0.01 * place, target=4) for place in range(12)]))
    found = comparison(study)
    assert [group.name for group in found.groups] == ["4"]
    assert (found.differs, found.pairs) == (None, [])


def test_all_equal() -> None:
    study = of([0.3] * 30)
    error = study.distributions[1]
    assert error.gini == pytest.approx(0, abs=1e-12)
    assert (error.worst_to_median, error.note) == (1, "all values are equal")
    assert comparison(study).kruskal_wallis.p_value == 1
    assert comparison(study).epsilon_squared == 0
    assert comparison(study).differs is False
    assert all(pair.effect == 0 for pair in comparison(study).pairs)
    assert "the same" in study.influence.note


def test_no_error_anywhere_has_no_shares() -> None:
    study = of([0.0] * 6)
    assert study.exposed == []
    assert all(one.share_of_average is None for one in study.samples)
    assert study.distributions[1].lorenz == []


def test_influence_is_the_root_of_the_upper_end() -> None:
    def with_largest(place: int, **largest: Any) -> SampleRow:
        return row(place, 0.3, solvers={"largest_eigenvalue": SolverEvidence(method="lanczos", **largest)})

    curvature = {"posterior_rmse": estimate(0.3), "lavp_l2_max": Estimate(value=6.0, high=8.0, status="converged")}
    rows = [
        with_largest(0, status="converged", value=3.0, low=3.0, high=4.0),
        with_largest(1, status="exact", value=9.0),
        with_largest(2, status="not_converged", value=9.0, low=9.0),
        row(3, 0.3, solvers={}, proxies=curvature),
        row(4, 0.3, solvers={}),
    ]
    assert [one.influence for one in fairness(audited(rows)).samples] == [2.0, 3.0, None, 2.0, None]


def test_influence_is_correlated_with_what_is_revealed() -> None:
    rng = np.random.default_rng(4)
    largest, revealed = rng.exponential(size=40), rng.uniform(size=40)
    rows = [
        row(place, 0.3, revealed=float(share), solvers={
            "largest_eigenvalue": SolverEvidence(method="dense", status="exact", value=float(own))
        })
        for place, (own, share) in enumerate(zip(largest, revealed, strict=True))
    ]  # fmt: skip
    link = fairness(audited(rows)).influence
    assert link.spearman == pytest.approx(stats.spearmanr(largest, revealed).statistic)
    assert link.low < link.spearman < link.high


def test_groups_besides_classes() -> None:
    rng = np.random.default_rng(5)
    rows = [row(place, float(rng.uniform(0.1, 0.2) + 0.4 * (place % 2))) for place in range(24)]
    groups = {str(place): ("east", "west")[place % 2] for place in range(20)} | {"unknown": "east"}
    study = fairness(audited(rows), groups, groups_name="sites.csv")
    found = comparison(study, by="group")
    assert {group.name: group.num_samples for group in found.groups} == {"east": 10, "west": 10, "none": 4}
    pair = next(pair for pair in found.pairs if {pair.first, pair.second} == {"east", "west"})
    assert pair.differs
    assert abs(pair.effect) == 1
    assert study.groups_name == "sites.csv"
    assert study.samples[3].group == "west"
    assert study.samples[23].group == "none"
    first, second = study.notes
    assert re.match("4 of 24 samples .*'none'", first)
    assert second.startswith("1 of 21 ids")
    assert comparison(study, by="class").groups


def test_regression_has_groups_only() -> None:
    rows = [row(place, 0.1 + 0.01 * place, target=0.5 * place) for place in range(12)]
    assert fairness(audited(rows)).comparisons == []
    study = fairness(audited(rows), {str(place): str(place % 2) for place in range(12)})
    assert {one.by for one in study.comparisons} == {"group"}


def test_classes_that_share_a_name_stay_apart() -> None:
    rows = [row(place, 0.1 + 0.01 * place) for place in range(9)]
    data = audited(rows).data.model_copy(update={"class_names": ["cat", "cat", "dog"]})
    study = fairness(audited(rows, data=data))
    assert {group.name for group in comparison(study).groups} == {"cat (0)", "cat (1)", "dog (2)"}


def test_the_study_is_plain_json_and_comes_back(tmp_path: Any) -> None:
    result = with_fairness(audited([row(place, 0.1 + 0.01 * place) for place in range(9)]), {"0": "a"}, "sites.csv")
    result.save(tmp_path / "audit.json")
    loaded = AuditResult.load(tmp_path / "audit.json")
    assert loaded.studies.get(FairnessStudy) == fairness(loaded, {"0": "a"}, groups_name="sites.csv")


def test_attacks_count_at_the_audit_s_own_noise(verified: AuditResult) -> None:
    study = fairness(verified)
    best = strongest(verified.studies.get(VerifyStudy).attacks)
    expected = {sample: error for (level, sample), (error, _) in best.items() if math.isclose(level, NOISE)}
    assert {one.sample_id: one.attack_rmse for one in study.samples} == expected
    attacked = study.distributions[2]
    assert (attacked.measure, attacked.worst) == ("attack_rmse", min(expected.values()))
    other = verified.model_copy(update={"release": audited([row(0, 0.3)]).release})
    assert len(fairness(other).distributions) == 2


def test_a_failed_control_is_noted(verified: AuditResult) -> None:
    study = verified.studies.get(VerifyStudy)
    failed = study.model_copy(update={"control": study.control.model_copy(update={"status": "failed"})})
    found = fairness(verified.with_study(failed))
    assert [re.search("failed .*no evidence of protection", note) is not None for note in found.notes] == [True]


SETTINGS = AuditSettings(release=f"gaussian:{NOISE}")


def test_a_study_without_attacks_is_an_audit_with_its_fairness() -> None:
    seen: list[tuple[int, int]] = []
    result = fairness_study(
        network(), digits(6), SETTINGS, StudyRun(progress=lambda *counts: seen.append(counts), command="riskaudit x"),
        groups={"0": "a"}, groups_name="sites.csv",
    )  # fmt: skip
    assert list(result.studies) == ["fairness"]
    assert result.command == "riskaudit x"
    assert seen[-1] == (6, 6)
    study = result.studies.get(FairnessStudy)
    assert study == fairness(result, {"0": "a"}, groups_name="sites.csv")
    for one, audited_row in zip(study.samples, result.samples, strict=True):
        assert one.influence == pytest.approx(math.sqrt(audited_row.proxies["lavp_l2_max"].value / 2), rel=1e-6)


@pytest.mark.slow
def test_a_study_with_attacks_holds_both() -> None:
    result = fairness_study(network(), digits(3), SETTINGS, StudyRun(attacks=True, attack_steps=3))
    assert set(result.studies) == {"verify", "fairness"}
    assert all(one.attack_rmse is not None for one in result.studies.get(FairnessStudy).samples)


@pytest.mark.slow
def test_an_interrupted_study_keeps_its_trials(tmp_path: Any) -> None:
    calls: list[int] = []

    def interrupt(done: int, total: int) -> None:
        calls.append(done)
        if done > 3:
            raise KeyboardInterrupt

    log = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        fairness_study(
            network(), digits(3), SETTINGS, StudyRun(attacks=True, attack_steps=3, log=log, progress=interrupt)
        )
    assert "gauss-newton" in log.read_text()
    assert calls
