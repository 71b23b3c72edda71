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
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binned_statistic, rankdata

from riskaudit.results import RELIABLE, Estimate
from riskaudit.statistics.rank_correlation import RankCorrelation, rank_correlation, rank_difference
from riskaudit.studies.rows import AttackRow, strongest
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
    sampling = {"confidence": confidence, "seed": seed, "num_resamples": num_resamples}
    correlations: dict[tuple[bytes, bytes], RankCorrelation] = {}
    return [
        _agreement_row(level, attack, metric, proxy, sampling, correlations, predicts_rmse)
        for level in _levels(attacks, predictions, higher_is_better)
        for attack, metric in level.errors
        for proxy in dict.fromkeys(name for prediction in level.predictions.values() for name in prediction.proxies)
    ]


def _agreement_row(
    level: _Level,
    attack: str,
    metric: str,
    proxy: str,
    sampling: dict[str, Any],
    correlations: dict[tuple[bytes, bytes], RankCorrelation],
    predicts_rmse: Collection[str],
) -> AgreementRow:
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
        correlations[key] = rank_correlation(*ranks, **sampling)
    fields = asdict(correlations[key])
    fits = level.noise_std > 0 and metric == "rmse" and proxy in predicts_rmse
    return AgreementRow(
        noise_std=level.noise_std,
        attack=attack,
        metric=metric,
        proxy=proxy,
        note=level.note(fields.pop("note")),
        **fields,
        **(_fit(level, proxy, estimates, values) if fits else {}),
    )


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
            brier = brier_score(probabilities, outcomes)
            if brier is None:
                continue
            records.append(
                Reliability(
                    noise_std=level.noise_std,
                    tolerance=tolerance,
                    num_samples=len(outcomes),
                    brier=brier,
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
            compared = _compared(level, attack, metric, own, other)
            if not compared:
                continue
            left, right, errors = zip(*compared, strict=True)
            comparison = asdict(rank_difference(left, right, errors, confidence=confidence, seed=seed))
            records.append(
                LossComparison(
                    noise_std=level.noise_std,
                    attack=attack,
                    metric=metric,
                    own=own,
                    other=other,
                    own_spearman=comparison.pop("own"),
                    other_spearman=comparison.pop("other"),
                    note=level.note(comparison.pop("note")),
                    **comparison,
                )
            )
    return records


def _compared(level: _Level, attack: str, metric: str, own: str, other: str) -> list[tuple[float, float, float]]:
    errors = level.errors.get((attack, metric), {})
    triples = []
    for sample, prediction in level.predictions.items():
        left, right = _value(prediction, own), _value(prediction, other)
        if sample in errors and left is not None and right is not None:
            triples.append((left, right, errors[sample]))
    return triples


def timings(attacks: Sequence[AttackRow], predictions: Sequence[Prediction]) -> list[Timing]:
    """Median seconds per sample of the proxies and of each attack, per noise level."""
    rows = []
    for noise_std in _noise_levels(attacks):
        proxy = _median(prediction.seconds for prediction in predictions if prediction.noise_std == noise_std)
        here = [row for row in attacks if row.noise_std == noise_std]
        rows += [
            Timing(
                noise_std=noise_std,
                attack=attack,
                proxy_seconds=proxy,
                attack_seconds=_median(row.seconds for row in here if row.attack == attack),
            )
            for attack in dict.fromkeys(row.attack for row in here)
        ]
    return rows


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


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


def _fit(level: _Level, proxy: str, predicted: dict[str, Estimate], errors: list[float]) -> dict[str, Any]:
    """Tightness and containment of an RMSE's prediction, before and after calibration."""
    fields: dict[str, Any] = {}
    summary = tightness(errors, [float(estimate.value or 0.0) for estimate in predicted.values()])
    if summary is not None:
        fields |= {
            "tightness_median": summary.median,
            "tightness_lower_quartile": summary.lower_quartile,
            "tightness_upper_quartile": summary.upper_quartile,
            "share_below_nine_tenths": summary.share_below_nine_tenths,
            "share_below_three_quarters": summary.share_below_three_quarters,
        }
    calibrated = [level.predictions[sample].calibrated.get(proxy) for sample in predicted]
    for prefix, estimates in (("", list(predicted.values())), ("calibrated_", calibrated)):
        shares = containment(
            errors,
            [estimate.low if estimate is not None else None for estimate in estimates],
            [estimate.high if estimate is not None else None for estimate in estimates],
        )
        fields |= {f"{prefix}validity": shares.validity, f"{prefix}coverage": shares.coverage}
    return fields


NUM_BINS = 10


@dataclass(frozen=True)
class Tightness:
    """Attack error over predicted error: 1 = foreseen exactly, above = the attack fell short of the prediction.

    The shares say how often an attack did better than 0.9 and 0.75 times the prediction.
    """

    num_samples: int
    median: float
    lower_quartile: float
    upper_quartile: float
    share_below_nine_tenths: float
    share_below_three_quarters: float


@dataclass(frozen=True)
class Containment:
    """Shares of samples: ``validity`` not below the interval, ``coverage`` inside it; None without such ends."""

    num_samples: int
    validity: float | None
    coverage: float | None


def tightness(attacked: Sequence[float], predicted: Sequence[float]) -> Tightness | None:
    """Summary of n ratios of root mean squared errors in the same units; None where no prediction is positive."""
    ratios = np.array([error / guess for error, guess in zip(attacked, predicted, strict=True) if guess > 0])
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) == 0:
        return None
    lower, middle, upper = (float(value) for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    below = [float((ratios < limit).mean()) for limit in (0.9, 0.75)]
    return Tightness(len(ratios), middle, lower, upper, *below)


def containment(attacked: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> Containment:
    """How often errors are inside their sample's interval, over the samples that have the ends it takes.

    Args:
        attacked: n errors.
        low: lower end per sample, None where there is none.
        high: likewise.
    """
    above = [(error, start, end) for error, start, end in zip(attacked, low, high, strict=True) if start is not None]
    inside = [(error, start, end) for error, start, end in above if end is not None]
    return Containment(
        len(above),
        float(np.mean([error >= start for error, start, _ in above])) if above else None,
        float(np.mean([start <= error <= end for error, start, end in inside])) if inside else None,
    )


def brier_score(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float | None:
    """Mean squared distance of n probabilities in [0, 1] from what happened; None for none."""
    if len(probabilities) == 0:
        return None
    happened = np.asarray(outcomes, dtype=np.float64)
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - happened) ** 2))


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
