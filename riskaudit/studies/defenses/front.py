"""What the trainings with several defences say together: a pure function of the runs, without torch.

Utility is the final training loss, risk the least error that any attack reached over the points of training (Liu et
al., "Data reconstruction attacks and defenses", equation 3: the strongest attack at equal loss of utility). Beside the
attack stands the posterior error, which says whether nothing leaks or the attack failed.

Intervals over seeds are Student's t; differences between defences are paired by sample and by seed (the trainings of
one seed see the data in one order), with a bootstrap over both (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from riskaudit.results.base import Estimate
from riskaudit.statistics.groups import paired_difference
from riskaudit.studies.defenses.record import (
    DefendedSample,
    DefenseRow,
    DefenseRun,
    EqualUtility,
    PointRow,
    SeedMean,
    TrainingPoint,
)

Values = npt.NDArray[np.float64]
Measure = Callable[[DefendedSample], float | None]


def attack_error(sample: DefendedSample) -> float | None:
    """The least error of an attack."""
    return sample.attack_rmse


def predicted_error(attacker: str) -> Measure:
    """The posterior error of the attacker by whom verdicts go: the lower end, where it is an interval."""

    def measure(sample: DefendedSample) -> float | None:
        informed = sample.informed_rmse
        return cautious(sample.outsider_rmse if informed is None or attacker == "outsider" else informed)

    return measure


def outsider_error(sample: DefendedSample) -> float | None:
    """The posterior error of who knows none of the others."""
    return cautious(sample.outsider_rmse)


def cautious(estimate: Estimate | None) -> float | None:
    """The lower end of what may be relied on."""
    return None if estimate is None else estimate.ends[0]


def over_seeds(values: Iterable[float | None], confidence: float) -> SeedMean | None:
    """Mean of the known values with Student's t interval; None without any."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return None
    mean = float(known.mean())
    if len(known) < 2:
        return SeedMean(mean=mean, num_seeds=1)
    half = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return SeedMean(mean=mean, low=mean - half, high=mean + half, num_seeds=len(known))


def defense_rows(
    runs: Sequence[DefenseRun], noisy: dict[str, bool], attacker: str, confidence: float
) -> list[DefenseRow]:
    """A row per defence, in the order of the runs, with its place on the front."""
    groups: dict[str, list[DefenseRun]] = {}
    for run in runs:
        groups.setdefault(run.defense, []).append(run)
    rows = [_row(name, group, noisy[name], attacker, confidence) for name, group in groups.items()]
    return [_placed(row, rows) for row in rows]


def least_errors(runs: Sequence[DefenseRun], measure: Measure) -> Values:
    """Of every finished run and sample the least error over the points of training, [S, N]; NaN where one is unknown.

    An error that isn't known at some point isn't known as the least.
    """
    lists = [[[measure(sample) for sample in point.samples] for point in run.points] for run in finished(runs)]
    return np.array([np.array(points, dtype=np.float64).min(axis=0) for points in lists], dtype=np.float64)


def trained(runs: Iterable[DefenseRun]) -> list[DefenseRun]:
    """The runs that came to the end of training."""
    return [run for run in runs if run.status in ("finished", "unaudited")]


def finished(runs: Iterable[DefenseRun]) -> list[DefenseRun]:
    """The runs that have all of their numbers."""
    return [run for run in runs if run.status == "finished"]


def equal_utility(
    rows: Sequence[DefenseRow], runs: Sequence[DefenseRun], attacker: str, confidence: float, seed: int
) -> list[EqualUtility]:
    """Every two defences whose intervals of the loss overlap; with one seed, of which none has, there are none."""
    measures = {"attack": attack_error, "predicted": predicted_error(attacker)}
    compared = []
    for first, second in combinations(rows, 2):
        if not overlap(first.loss, second.loss):
            continue
        fields: dict[str, Any] = {"first": first.defense, "second": second.defense}
        for what, measure in measures.items():
            paired = _paired_errors(runs, first.defense, second.defense, measure)
            ends = paired_difference(*paired, confidence=confidence, seed=seed)
            fields |= dict(zip((f"{what}_difference", f"{what}_low", f"{what}_high"), ends, strict=True))
        low, high = fields["attack_low"], fields["attack_high"]
        fields["told_apart"] = None if low is None or high is None else low > 0 or high < 0
        compared.append(EqualUtility(**fields))
    return compared


def _paired_errors(runs: Sequence[DefenseRun], first: str, second: str, measure: Measure) -> tuple[Values, Values]:
    """Errors of both defences in the trainings of the seeds that both have finished."""
    ones, others = ({run.number: run for run in finished(runs) if run.defense == name} for name in (first, second))
    numbers = sorted(ones.keys() & others.keys())
    return least_errors([ones[number] for number in numbers], measure), least_errors(
        [others[number] for number in numbers], measure
    )


def overlap(first: SeedMean | None, second: SeedMean | None) -> bool:
    """Whether two intervals have a point in common."""
    if first is None or second is None:
        return False
    ends = (first.low, first.high, second.low, second.high)
    if None in ends:
        return False
    return max(first.low or 0.0, second.low or 0.0) <= min(first.high or 0.0, second.high or 0.0)


def dominates(one: DefenseRow, other: DefenseRow) -> bool:
    """Whether a defence has at most the other's mean loss and at least its attack error, and one of both is better."""
    if one.loss is None or one.attack_rmse is None or other.loss is None or other.attack_rmse is None:
        return False
    gains = (other.loss.mean - one.loss.mean, one.attack_rmse.mean - other.attack_rmse.mean)
    return min(gains) >= 0 and max(gains) > 0


def _placed(row: DefenseRow, rows: Sequence[DefenseRow]) -> DefenseRow:
    if row.loss is None or row.attack_rmse is None:
        return row
    better = [other.defense for other in rows if dominates(other, row)]
    return row.model_copy(update={"on_front": not better, "dominated_by": better})


def _row(name: str, runs: Sequence[DefenseRun], noisy: bool, attacker: str, confidence: float) -> DefenseRow:
    done, predicted = finished(runs), predicted_error(attacker)
    ends = [run.points[-1] for run in trained(runs)]
    attacked, foreseen = least_errors(runs, attack_error), least_errors(runs, predicted)

    def mean(values: Values) -> SeedMean | None:
        return over_seeds(_known_means(values), confidence)

    strongest = [_weakest_point(run) for run in done]
    reasons = [run.reason for run in runs if run.reason]
    return DefenseRow(
        defense=name,
        noisy=noisy,
        num_seeds=len(runs),
        num_finished=len(done),
        loss=over_seeds((point.loss for point in ends), confidence),
        accuracy=over_seeds((point.accuracy for point in ends), confidence),
        attack_rmse=mean(attacked),
        predicted_rmse=mean(foreseen),
        outsider_rmse=mean(least_errors(runs, outsider_error)),
        least_attack=_least(attacked),
        least_predicted=_least(foreseen),
        num_unattacked=int(np.isnan(attacked).any(axis=0).sum()) if attacked.size else 0,
        num_unpredicted=int(np.isnan(foreseen).any(axis=0).sum()) if foreseen.size else 0,
        strongest=sorted({attack for names in strongest for attack in names}),
        points=_point_rows(runs, confidence),
        reasons=list(dict.fromkeys(reasons)),
    )


def _known_means(values: Values) -> list[float | None]:
    """Of every run the mean over the samples that are known in all of them."""
    if not values.size:
        return []
    known = ~np.isnan(values).any(axis=0)
    return [float(row[known].mean()) if known.any() else None for row in values]


def _least(values: Values) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmin(values))


def _weakest_point(run: DefenseRun) -> set[str]:
    """The attacks that reached the least errors of a run."""
    best: dict[str, tuple[float, str]] = {}
    for point in run.points:
        for sample in point.samples:
            if sample.attack_rmse is None or sample.attack is None:
                continue
            found = (sample.attack_rmse, sample.attack)
            best[sample.sample_id] = min(best.get(sample.sample_id, found), found)
    return {attack for _, attack in best.values()}


def _point_rows(runs: Sequence[DefenseRun], confidence: float) -> list[PointRow]:
    """A row per point of the trainings that came to their end; errors of those that could be audited throughout."""
    ended, audited = trained(runs), finished(runs)
    return [
        _point_row([run.points[place] for run in ended], [run.points[place] for run in audited], confidence)
        for place in range(min((len(run.points) for run in ended), default=0))
    ]


def _point_row(points: Sequence[TrainingPoint], audited: Sequence[TrainingPoint], confidence: float) -> PointRow:
    def mean(measure: Measure) -> SeedMean | None:
        values = [[measure(sample) for sample in point.samples] for point in audited]
        return over_seeds(_known_means(np.array(values, dtype=np.float64)), confidence)

    return PointRow(
        step=points[0].step,
        loss=over_seeds((point.loss for point in points), confidence),
        accuracy=over_seeds((point.accuracy for point in points), confidence),
        attack_rmse=mean(attack_error),
        outsider_rmse=mean(outsider_error),
        informed_rmse=mean(lambda sample: cautious(sample.informed_rmse)),
        relative_rmse=mean(lambda sample: cautious(sample.relative_rmse)),
    )
