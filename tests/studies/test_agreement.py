"""Records of a study from attacks and predictions, against values worked out apart."""

from __future__ import annotations

import numpy as np
import pytest
from scan_cases import loaded_modules
from scipy import stats

from riskaudit.results import Estimate, SuccessProbability
from riskaudit.studies.rows import AttackRow, strongest
from riskaudit.studies.verify.agreement import (
    agreement_rows,
    containment,
    loss_comparisons,
    reliability_bins,
    reliability_records,
    tightness,
    timings,
)
from riskaudit.studies.verify.record import STRONGEST, AgreementRow, Prediction


def attack(sample: int, name: str, rmse: float | None, *, noise: float = 0.01, oracle: bool = False) -> AttackRow:
    metrics = {"rmse": rmse, "psnr": None if rmse is None else -20 * float(np.log10(rmse))}
    return AttackRow(
        attack=name, sample_id=str(sample), noise_std=noise, oracle_start=oracle, label_known=True,
        status="converged", metrics=metrics, objective=0.0, steps=10, seconds=1.0 + sample,
    )  # fmt: skip


def prediction(sample: int, *, noise: float = 0.01, status: str = "exact", **proxies: float | None) -> Prediction:
    return Prediction(
        noise_std=noise,
        sample_id=str(sample),
        proxies={name: Estimate(value=value, status=status) for name, value in proxies.items()},
        seconds=0.5,
    )


def study(count: int = 12, noises: tuple[float, ...] = (0.01, 0.1)) -> tuple[list[AttackRow], list[Prediction]]:
    rng = np.random.default_rng(0)
    attacks, predictions = [], []
    for noise in noises:
        guess = noise * rng.uniform(5, 9, count)
        for sample in range(count):
            factors = rng.uniform(0.9, 1.3, 2)
            attacks += [
                attack(sample, "one", float(guess[sample] * factors[0]), noise=noise),
                attack(sample, "two", float(guess[sample] * factors[1]), noise=noise),
                attack(sample, "truth", float(guess[sample] * 0.5), noise=noise, oracle=True),
            ]
            predictions.append(
                prediction(sample, noise=noise, map_rmse=float(guess[sample]), lavp_l2_max=float(1 / guess[sample]))
            )
    return attacks, predictions


def agreement_of(attacks, predictions, **options) -> list[AgreementRow]:
    return agreement_rows(
        attacks, predictions, higher_is_better={"psnr"}, predicts_rmse={"map_rmse", "posterior_rmse", "i2f"}, **options
    )


def test_the_strongest_attack_has_no_oracle_start() -> None:
    rows = [
        attack(0, "a", 0.3), attack(0, "b", 0.2), attack(0, "truth", 0.1, oracle=True), attack(0, "c", None),
        attack(0, "a", 0.05, noise=0.001), attack(1, "c", None),
    ]  # fmt: skip
    best = strongest(rows)
    assert {key: (value, row.attack) for key, (value, row) in best.items()} == {
        (0.01, "0"): (0.2, "b"),
        (0.001, "0"): (0.05, "a"),
    }
    assert strongest(rows, "psnr", higher_is_better=True)[0.01, "0"][1].attack == "b"


def test_agreement_is_computed_per_noise_level() -> None:
    attacks, predictions = study()
    rows = agreement_of(attacks, predictions, num_resamples=50)
    keys = [(row.noise_std, row.attack, row.metric, row.proxy) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * 4 * 2 * 2
    for row in rows:
        values = {one.sample_id: one.proxies[row.proxy].value for one in predictions if one.noise_std == row.noise_std}
        here = [one for one in attacks if one.noise_std == row.noise_std]
        pick = max if row.metric == "psnr" else min
        errors = {
            sample: pick(
                one.metrics[row.metric]
                for one in here
                if one.sample_id == sample
                and (not one.oracle_start if row.attack == STRONGEST else one.attack == row.attack)
            )
            for sample in values
        }
        expected = stats.spearmanr(list(values.values()), list(errors.values())).statistic
        assert row.spearman == pytest.approx(expected), row
        assert row.num_samples == 12
        assert (row.tightness_median is not None) == (row.proxy == "map_rmse" and row.metric == "rmse")


def test_correlations_keep_their_sign() -> None:
    rows = agreement_of(*study(), num_resamples=50)
    signs = {(row.metric, row.proxy): np.sign(row.spearman) for row in rows if row.attack == STRONGEST}
    assert signs == {
        ("rmse", "map_rmse"): 1, ("rmse", "lavp_l2_max"): -1, ("psnr", "map_rmse"): -1, ("psnr", "lavp_l2_max"): 1,
    }  # fmt: skip


def test_values_that_can_t_be_relied_on_are_left_out() -> None:
    attacks = [attack(sample, "one", 0.1 + 0.01 * sample) for sample in range(6)]
    predictions = [prediction(sample, map_rmse=0.1 + 0.02 * sample) for sample in range(5)]
    predictions += [prediction(5, map_rmse=9.0, status="not_converged"), prediction(6, map_rmse=0.3)]
    row = agreement_of(attacks, predictions, num_resamples=20)[0]
    assert (row.num_samples, row.spearman) == (5, 1.0)
    few = agreement_of(attacks[:2], predictions, num_resamples=20)[0]
    assert (few.spearman, few.num_samples) == (None, 2)
    assert few.note.startswith("too few samples")
    assert agreement_of([], predictions) == []
    assert agreement_of(attacks, []) == []


def test_tightness_and_intervals_before_and_after_calibration() -> None:
    attacks = [attack(sample, "one", rmse) for sample, rmse in enumerate([0.05, 0.08, 0.1, 0.2, 0.4])]
    predictions = [
        Prediction(
            noise_std=0.01, sample_id=str(sample),
            proxies={"map_rmse": Estimate(value=0.1, low=0.09, high=0.15, status="bracketed")},
            calibrated={"map_rmse": Estimate(value=0.1, low=0.04, high=0.3, status="exact")},
        )
        for sample in range(5)
    ]  # fmt: skip
    row = agreement_of(attacks, predictions, num_resamples=20)[0]
    assert (row.attack, row.metric, row.note) == (STRONGEST, "rmse", "all predictions are equal")
    assert row.tightness_lower_quartile == pytest.approx(0.8)
    assert (row.tightness_median, row.tightness_upper_quartile) == pytest.approx((1.0, 2.0))
    assert (row.share_below_nine_tenths, row.share_below_three_quarters) == (0.4, 0.2)
    assert (row.validity, row.coverage) == (0.6, 0.2)
    assert (row.calibrated_validity, row.calibrated_coverage) == (1.0, 0.8)


def test_no_interval_gives_neither_coverage_nor_validity() -> None:
    row = agreement_of([attack(s, "one", 0.1 + s) for s in range(5)], [prediction(s, i2f=0.2 + s) for s in range(5)])[0]
    assert (row.validity, row.coverage, row.calibrated_validity, row.calibrated_coverage) == (None,) * 4
    assert row.tightness_median is not None


def test_a_one_sided_interval_has_validity_only() -> None:
    ends = [(0.15, None), (0.15, None), (None, 0.2)]
    intervals = [Estimate(value=0.2, low=low, high=high, status="bracketed") for low, high in ends]
    assert containment([0.1, 0.2, 0.3], intervals) == {"validity": 0.5, "coverage": None}


def test_tightness_without_a_positive_prediction() -> None:
    assert tightness([0.1, 0.2], [0.0, 0.0]) == tightness([], []) == {}
    assert tightness([0.1, 0.2], [0.0, 0.2])["tightness_median"] == 1


def test_bins_hold_every_sample_once() -> None:
    rng = np.random.default_rng(0)
    predicted = np.concatenate([rng.uniform(size=500), [0.0, 1.0, 0.1, 0.3]])
    outcomes = rng.uniform(size=504) < predicted
    bins = reliability_bins(list(predicted), list(outcomes))
    assert sum(one.num_samples for one in bins) == 504
    for one in bins:
        inside = (predicted >= one.low) & ((predicted < one.high) | (one.high == 1))
        assert one.num_samples == inside.sum()
        assert one.mean_predicted == pytest.approx(predicted[inside].mean())
        assert one.observed == pytest.approx(outcomes[inside].mean())


def test_empty_bins_are_left_out_and_bad_input_refused() -> None:
    assert [one.low for one in reliability_bins([0.05, 0.95], [False, True])] == [0.0, pytest.approx(0.9)]
    assert reliability_bins([], []) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        reliability_bins([1.2], [True])
    with pytest.raises(ValueError, match="as many outcomes"):
        reliability_bins([0.2], [])


def test_reliability_is_held_against_the_strongest_attack() -> None:
    def success(sample: int, probability: float | None) -> Prediction:
        chance = SuccessProbability(tolerance=0.1, probability=probability, status="exact")
        return prediction(sample).model_copy(update={"success_probability": [chance]})

    attacks = [attack(0, "one", 0.3), attack(0, "two", 0.1), attack(0, "truth", 0.01, oracle=True)]
    attacks += [attack(1, "one", 0.3), attack(1, "truth", 0.01, oracle=True), attack(2, "one", 0.05)]
    found = reliability_records(attacks, [success(0, 0.8), success(1, 0.4), success(2, None), success(3, 0.1)])
    assert [(row.noise_std, row.tolerance, row.num_samples) for row in found] == [(0.01, 0.1, 2)]
    assert found[0].brier == pytest.approx((0.04 + 0.16) / 2)
    assert [(one.observed, one.num_samples) for one in found[0].bins] == [(0.0, 1), (1.0, 1)]


def test_without_noise_only_ranks_are_compared() -> None:
    attacks, predictions = study(12, (0.01, 0.1))
    chance = SuccessProbability(tolerance=0.1, probability=0.5, status="exact")
    interval = {"low": 0.01, "high": 2.0}
    predictions = [
        one.model_copy(
            update={
                "proxies": one.proxies | {"map_rmse": one.proxies["map_rmse"].model_copy(update=interval)},
                "calibrated": {"map_rmse": one.proxies["map_rmse"].model_copy(update=interval)},
                "success_probability": [chance],
            }
        )
        for one in predictions
    ]
    quiet = {0.01: 0.01, 0.1: 0.0}
    attacks = [row.model_copy(update={"noise_std": quiet[row.noise_std]}) for row in attacks]
    predictions = [one.model_copy(update={"noise_std": quiet[one.noise_std]}) for one in predictions]
    measured = ("tightness_median", "share_below_nine_tenths", "validity", "coverage", "calibrated_validity")
    rows = agreement_of(attacks, predictions, num_resamples=20)
    assert {row.noise_std for row in rows} == {0.0, 0.01}
    for row in rows:
        assert row.spearman is not None
        assert ("reference noise" in (row.note or "")) == (row.noise_std == 0)
        if (row.proxy, row.metric) == ("map_rmse", "rmse"):
            assert {getattr(row, name) is not None for name in measured} == {row.noise_std > 0}, row
    assert [row.noise_std for row in reliability_records(attacks, predictions)] == [0.01]
    compared = loss_comparisons(attacks, predictions, {"one": ("lavp_l2_max", "map_rmse")})
    assert ["reference noise" in (row.note or "") for row in compared] == [True, False]


def test_loss_comparisons() -> None:
    attacks, predictions = study(30, (0.01,))
    rng = np.random.default_rng(1)
    predictions = [
        one.model_copy(
            update={"proxies": one.proxies | {"lavp_cosine_max": Estimate(value=rng.uniform(), status="exact")}}
        )
        for one in predictions
    ]
    pairs = {"one": ("lavp_l2_max", "lavp_cosine_max"), "absent": ("lavp_l2_max", "lavp_cosine_max")}
    found = loss_comparisons(attacks, predictions, pairs)
    assert [(row.attack, row.metric, row.num_samples) for row in found] == [("one", "rmse", 30)]
    assert found[0].own_spearman > 0.6 > found[0].other_spearman
    assert (abs(found[0].own_rho), abs(found[0].other_rho)) == (found[0].own_spearman, found[0].other_spearman)
    errors = {row.sample_id: row.metrics["rmse"] for row in attacks if row.attack == "one"}
    values = [one.proxies["lavp_l2_max"].value for one in predictions]
    expected = stats.spearmanr(values, [errors[one.sample_id] for one in predictions]).statistic
    assert found[0].own_rho == pytest.approx(expected)
    assert found[0].low > 0
    assert found[0].p_value < 0.05


def test_timings() -> None:
    attacks, predictions = study(5, (0.01,))
    found = {row.attack: (row.proxy_seconds, row.attack_seconds) for row in timings(attacks, predictions)}
    assert found == {"one": (0.5, 3.0), "two": (0.5, 3.0), "truth": (0.5, 3.0)}


def test_statistics_load_no_torch() -> None:
    assert loaded_modules(["torch"], "import riskaudit.statistics.groups, riskaudit.statistics.rank_correlation") == []
