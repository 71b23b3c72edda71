"""From attacks and predictions to the records of a study: what foresaw what, and how well.

Everything is computed per noise level: pooled levels would correlate by their level alone. Correlations are raw:
a proxy that is riskier when higher is expected to correlate negatively with an error. A sample counts where the
attack has a finite metric and the proxy a value that may be relied on (exact, converged or bracketed).

Without noise the predictions are those of a reference noise, which ranks samples and says nothing of an attack that
saw none: there are correlations at noise 0, but neither ratios nor intervals nor success probabilities.

Brier score = mean (p - outcome)^2: 0 is perfect, 0.25 what "always one half" gets (Brier 1950)
reliability: per bin of p, how often the event happened beside the mean p (Murphy and Winkler 1977)
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.stats import binned_statistic, rankdata
from sklearn.metrics import brier_score_loss

from riskaudit.results import RELIABLE, Estimate
from riskaudit.statistics.rank_correlation import RankCorrelation, rank_correlation, rank_difference
from riskaudit.statistics.summaries import of_known
from riskaudit.studies.rows import TIME_REASONS, AttackRow, strongest
from riskaudit.studies.verify.record import (
    STRONGEST,
    AgreementRow,
    LossComparison,
    Prediction,
    Reliability,
    ReliabilityBin,
    Timing,
)

# One bootstrap per noise level, attack, metric and proxy: a study has hundreds.
NUM_RESAMPLES = 1000
NUM_BINS = 10
_REFERENCE_NOTE = "without noise: the predictions are those of the reference noise"


class _Level(NamedTuple):
    """One noise level: errors per attack and metric, and predictions, both by sample id."""

    noise_std: float
    errors: dict[tuple[str, str], dict[str, float]]
    predictions: dict[str, Prediction]

    def note(self, note: str | None) -> str | None:
        """A record's note, with what holds of the whole level."""
        notes = (note, _REFERENCE_NOTE if self.noise_std == 0 else None)
        return "; ".join(text for text in notes if text) or None


def agreement_rows(
    attacks: Sequence[AttackRow],
    predictions: Sequence[Prediction],
    *,
    higher_is_better: Collection[str],
    predicts_rmse: Collection[str],
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[AgreementRow]:
    """Every proxy against every metric of every attack and of the strongest one, per noise level."""
    correlations: dict[tuple[bytes, bytes], RankCorrelation] = {}

    def row(level: _Level, attack: str, metric: str, proxy: str) -> AgreementRow:
        errors = level.errors[attack, metric]
        estimates = {
            sample: prediction.proxies[proxy]
            for sample, prediction in level.predictions.items()
            if sample in errors and _value(prediction, proxy) is not None
        }
        values = [errors[sample] for sample in estimates]
        # Only ranks matter, and many rows share them: MSE with RMSE, the strongest attack with a single one.
        ranks = rankdata([estimate.value for estimate in estimates.values()]), rankdata(values)
        key = ranks[0].tobytes(), ranks[1].tobytes()
        if key not in correlations:
            correlations[key] = rank_correlation(*ranks, confidence=confidence, seed=seed, num_resamples=num_resamples)
        fields = correlations[key].model_dump()
        if level.noise_std > 0 and metric == "rmse" and proxy in predicts_rmse:
            calibrated = [level.predictions[sample].calibrated.get(proxy) for sample in estimates]
            shares = containment(values, calibrated)
            fields |= tightness(values, [float(estimate.value or 0.0) for estimate in estimates.values()])
            fields |= containment(values, estimates.values()) | {f"calibrated_{name}": shares[name] for name in shares}
        fields |= {"noise_std": level.noise_std, "note": level.note(fields["note"])}
        return AgreementRow(attack=attack, metric=metric, proxy=proxy, **fields)

    return [
        row(level, attack, metric, proxy)
        for level in _levels(attacks, predictions, higher_is_better)
        for attack, metric in level.errors
        for proxy in dict.fromkeys(name for prediction in level.predictions.values() for name in prediction.proxies)
    ]


def reliability_records(attacks: Sequence[AttackRow], predictions: Sequence[Prediction]) -> list[Reliability]:
    """Predicted success probabilities against the strongest attack, per tolerance and noise level above 0.

    An attack succeeds where its RMSE is at most the tolerance, as the probability has it.
    """
    records = []
    for level in _levels(attacks, predictions):
        if level.noise_std == 0:
            continue
        errors = level.errors.get((STRONGEST, "rmse"), {})
        pairs: dict[float, tuple[list[float], list[bool]]] = {}
        for sample, prediction in level.predictions.items():
            for success in prediction.success_probability:
                if success.probability is None or success.status not in RELIABLE or sample not in errors:
                    continue
                probabilities, outcomes = pairs.setdefault(success.tolerance, ([], []))
                probabilities.append(success.probability)
                outcomes.append(errors[sample] <= success.tolerance)
        for tolerance, (probabilities, outcomes) in sorted(pairs.items()):
            records.append(
                Reliability(
                    noise_std=level.noise_std,
                    tolerance=tolerance,
                    num_samples=len(outcomes),
                    brier=brier_score_loss(outcomes, probabilities),
                    bins=reliability_bins(probabilities, outcomes),
                )
            )
    return records


def loss_comparisons(
    attacks: Sequence[AttackRow],
    predictions: Sequence[Prediction],
    pairs: Mapping[str, tuple[str, str]],
    *,
    metrics: Sequence[str] = ("rmse",),
    confidence: float = 0.95,
    seed: int = 0,
) -> list[LossComparison]:
    """Does the proxy of an attack's own matching loss rank its errors better than that of the other loss?

    Over the samples for which both proxies have a value.
    """
    records = []
    for level in _levels(attacks, predictions):
        for (attack, (own, other)), metric in product(pairs.items(), metrics):
            by_sample = level.errors.get((attack, metric), {})
            triples = [
                (_value(prediction, own), _value(prediction, other), by_sample[sample])
                for sample, prediction in level.predictions.items()
                if sample in by_sample
            ]
            compared = [triple for triple in triples if None not in triple]
            if not compared:
                continue
            left, right, errors = zip(*compared, strict=True)
            comparison = asdict(rank_difference(left, right, errors, confidence=confidence, seed=seed))
            own_rho, other_rho = comparison.pop("own"), comparison.pop("other")
            records.append(
                LossComparison(
                    noise_std=level.noise_std,
                    attack=attack,
                    metric=metric,
                    own=own,
                    other=other,
                    own_spearman=None if own_rho is None else abs(own_rho),
                    other_spearman=None if other_rho is None else abs(other_rho),
                    own_rho=own_rho,
                    other_rho=other_rho,
                    note=level.note(comparison.pop("note")),
                    **comparison,
                )
            )
    return records


def timings(attacks: Sequence[AttackRow], predictions: Sequence[Prediction]) -> list[Timing]:
    """Median seconds per sample of the proxies and of each attack, per noise level."""
    rows = []
    for noise_std in _noise_levels(attacks):
        proxy = of_known(
            statistics.median, (prediction.seconds for prediction in predictions if prediction.noise_std == noise_std)
        )
        here = [row for row in attacks if row.noise_std == noise_std and row.status not in TIME_REASONS]
        rows += [
            Timing(
                noise_std=noise_std,
                attack=attack,
                proxy_seconds=proxy,
                attack_seconds=of_known(statistics.median, (row.seconds for row in here if row.attack == attack)),
            )
            for attack in dict.fromkeys(row.attack for row in here)
        ]
    return rows


def _noise_levels(attacks: Sequence[AttackRow]) -> list[float]:
    return sorted({row.noise_std for row in attacks})


def _value(prediction: Prediction, proxy: str) -> float | None:
    estimate = prediction.proxies.get(proxy)
    return None if estimate is None else estimate.reliable


def _levels(
    attacks: Sequence[AttackRow], predictions: Sequence[Prediction], higher_is_better: Collection[str] = ()
) -> list[_Level]:
    """Errors and predictions sorted by noise level; attacks in the order of the rows, the strongest one first."""
    levels = []
    for noise_std in _noise_levels(attacks):
        here = [row for row in attacks if row.noise_std == noise_std]
        errors: dict[tuple[str, str], dict[str, float]] = {}
        for metric in dict.fromkeys(name for row in here for name in row.metrics):
            best = strongest(here, metric, higher_is_better=metric in higher_is_better)
            errors[STRONGEST, metric] = {sample: value for (_, sample), (value, _) in best.items()}
        for row in here:
            for metric, value in row.metrics.items():
                if value is not None:
                    errors.setdefault((row.attack, metric), {})[row.sample_id] = value
        predicted = {
            prediction.sample_id: prediction for prediction in predictions if prediction.noise_std == noise_std
        }
        levels.append(_Level(noise_std, {key: by_sample for key, by_sample in errors.items() if by_sample}, predicted))
    return levels


def tightness(attacked: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Attack over predicted RMSE as fields of `AgreementRow`: 1 = foreseen exactly, above = the attack fell short.

    The shares say how often an attack did better than 0.9 and 0.75 times the prediction. Nothing where no prediction
    is positive.
    """
    ratios = np.array([error / guess for error, guess in zip(attacked, predicted, strict=True) if guess > 0])
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) == 0:
        return {}
    lower, middle, upper = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return {
        "tightness_median": middle,
        "tightness_lower_quartile": lower,
        "tightness_upper_quartile": upper,
        "share_below_nine_tenths": float((ratios < 0.9).mean()),
        "share_below_three_quarters": float((ratios < 0.75).mean()),
    }


def containment(attacked: Sequence[float], intervals: Iterable[Estimate | None]) -> dict[str, float | None]:
    """Shares of n errors that are not below their interval ("validity") or in it ("coverage"); None without ends."""
    pairs = [(error, each) for error, each in zip(attacked, intervals, strict=True) if each is not None]
    above = [error >= each.low for error, each in pairs if each.low is not None]
    inside = [each.low <= error <= each.high for error, each in pairs if each.low is not None and each.high is not None]
    return {
        "validity": float(np.mean(above)) if above else None,
        "coverage": float(np.mean(inside)) if inside else None,
    }


def reliability_bins(
    probabilities: Sequence[float], outcomes: Sequence[bool], *, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Bins of equal width over [0, 1] that hold at least one of n samples; the last one includes 1.

    Raises:
        ValueError: the lengths differ, or a probability isn't in [0, 1].
    """
    predicted, happened = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=bool)
    if predicted.shape != happened.shape:
        raise ValueError(f"expected as many outcomes as probabilities, found {len(happened)} and {len(predicted)}")
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise ValueError("expected probabilities between 0 and 1")
    counts, edges = np.histogram(predicted, num_bins, (0, 1))
    means = binned_statistic(predicted, [predicted, happened], bins=num_bins, range=(0, 1)).statistic
    return [
        ReliabilityBin(
            low=float(low), high=float(high), num_samples=int(count), mean_predicted=float(mean), observed=float(share)
        )
        for low, high, count, mean, share in zip(edges, edges[1:], counts, *means, strict=False)
        if count
    ]
