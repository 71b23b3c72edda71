"""What several studies record: controls, attacks, and each sample's risk under each of several models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from pydantic import Field

from riskaudit.results.base import Estimate, Record, Status
from riskaudit.results.studies import StudyRecord

SearchEnd: TypeAlias = Literal["noise_floor", "control"]
AttackStatus: TypeAlias = Status | Literal["stopped", "not_run"]
"""Of an attack. The last two say that the budget of time ended it, or kept it from beginning: nothing is known then."""
TIME_REASONS: dict[AttackStatus, str] = {
    "stopped": "the budget of time was used up before the attack's end, which says nothing of the sample",
    "not_run": "the budget of time was used up before the attack, which says nothing of the sample",
}


class SampleRisk(Record):
    """One sample under one model.

    Where several samples leave together ``posterior_rmse`` and ``revealed_fraction`` are those of the attacker by whom
    verdicts go.

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        status: status of the revealed fraction.
        reason: one sentence on why there is no number; null where there is one.
        loss: the model's loss on the sample; null where it failed.
        gradient_norm: Euclidean norm of the release before noise; null where it failed.
        largest_eigenvalue: largest eigenvalue l_1 of J^T J, in released units over data units, squared; null where
            unknown.
        trace: trace of J^T J, in the same units; null where unknown.
        expected_rmse: error of the proxy of this id, a root mean square per coordinate in data units.
        posterior_rmse: posterior error, a root mean square per coordinate in data units.
        revealed_fraction: revealed fraction of the input, 0 to 1.
        attack_rmse: RMSE of the strongest attack, in data units; null where none ran.
        attack_errors: RMSE of each attack by its id, in data units.
        oracle_rmse: RMSE of the attack that is started at the truth, in data units; null where it didn't run.
    """

    sample_id: str
    status: Status
    reason: str | None = None
    loss: float | None = None
    gradient_norm: float | None = None
    largest_eigenvalue: float | None = None
    trace: float | None = None
    expected_rmse: Estimate
    posterior_rmse: Estimate
    revealed_fraction: Estimate
    attack_rmse: float | None = None
    attack_errors: dict[str, float] = Field(default_factory=dict)
    oracle_rmse: float | None = None


class Quartiles(Record):
    """Median and quartiles of some numbers, in their units.

    Attributes:
        lower: lower quartile; null where it is infinite.
        median: median; null where it is infinite.
        upper: upper quartile; null where it is infinite.
        num_values: how many numbers.
        num_infinite: how many of them are infinite: an error that no finite number describes, since the release is
            singular.
    """

    lower: float | None
    median: float | None
    upper: float | None
    num_values: int
    num_infinite: int = 0


class Control(Record):
    """The positive control: attacks on an undefended release of a registered lenet, which must reconstruct.

    Attributes:
        status: whether they did; "skipped" where the control didn't run.
        rmse: median over the control's samples of the strongest attack's RMSE, in data units; null where none ran.
        limit: RMSE that it had to reach, in data units; null where none was set.
        attack: id of the strongest attack; null where none ran.
        num_samples: number of the control's samples.
        reason: one sentence on why it failed or was skipped; null where it passed.
    """

    status: Literal["passed", "failed", "skipped"]
    rmse: float | None
    limit: float | None = None
    attack: str | None = None
    num_samples: int = 0
    reason: str | None = None


class ModelsStudy(StudyRecord):
    """What studies of several models record alike.

    Attributes:
        architecture: name of the models' architecture.
        noise_std: standard deviation per released entry that predictions and attacks are made at.
        reference_noise: whether that is the reference noise, which the client does not add.
        prior_rmse: error of a guess from the prior, a root mean square per coordinate in data units.
        attacks: ids of the attacks that were run.
        control: the positive control of these attacks; null where none was run.
    """

    architecture: str
    noise_std: float
    reference_noise: bool
    prior_rmse: float
    attacks: list[str] = Field(default_factory=list)
    control: Control | None = None


class AttackRow(Record):
    """One attack on one sample at one noise level.

    Attributes:
        attack: id of the attack.
        sample_id: id of the sample, as in ``samples`` of the file.
        noise_std: standard deviation of the noise per released entry; 0 where there is none.
        oracle_start: whether the attack was started at the truth, which no attacker has.
        label_known: whether the attack was told the label.
        status: what became of the attack; "stopped" and "not_run" say that the budget of time ended it or kept it from
            beginning.
        reason: one sentence on why there is no result; null where there is one.
        metrics: quality of the reconstruction that the attacker's own objective chose, by metric, in the units that
            ``metric_info`` states; null where a metric isn't applicable.
        original_metrics: the same against the image x before the client's transformation T, where ``metrics`` are
            against T(x); null without a transformation.
        objective: the attacker's own objective at the reconstruction; null where it failed.
        steps: number of steps that it took.
        restarts: number of starts that it was given.
        seconds: this sample's share of the time that a batched run took.
        ended_by: why the sample had no further start: its residual is at the noise floor, or its first start got stuck
            and doesn't invert its undefended gradient either ("control"); null where all starts were used.
        recovered_label: class number that the attack found; null where it was told the label.
        confidence: the attacker's own, from 0 to 1; null where the attack says none.
        image_png: the reconstruction as a PNG in base64, only there when the user asked to show samples.
        tokens_right: for each position of a text whether the vocabulary's nearest token to the reconstruction is the
            true one; null where everybody knows what stands there (the tokenizer's own tokens, the mask).
        tokens: the reconstructed tokens in words, only there when the user asked to show samples.
    """

    attack: str
    sample_id: str
    noise_std: float
    oracle_start: bool
    label_known: bool
    status: AttackStatus
    reason: str | None = None
    metrics: dict[str, float | None]
    original_metrics: dict[str, float | None] | None = None
    objective: float | None
    steps: int
    restarts: int = 1
    seconds: float
    ended_by: SearchEnd | None = None
    recovered_label: int | None = None
    confidence: float | None = None
    image_png: str | None = None
    tokens_right: list[bool | None] | None = None
    tokens: list[str] | None = None


class AttackForecast(Record):
    """Time that one attack will take on all samples at all noise levels.

    Attributes:
        attack: id of the attack.
        low: seconds at the least, where searches don't get stuck.
        high: seconds at the most, where searches don't get stuck.
        most: seconds where all of them do.
    """

    attack: str
    low: float
    high: float
    most: float


class Forecast(Record):
    """Time that a study will take on this machine, foretold from a few timed steps.

    Attributes:
        low: seconds at the least, where searches don't get stuck.
        high: seconds at the most, where searches don't get stuck.
        most: seconds where all of them do.
        audit: seconds of these that the audits take.
        num_timed: number of samples that were timed.
        attacks: the same for each attack.
    """

    low: float
    high: float
    most: float
    audit: float
    num_timed: int
    attacks: list[AttackForecast]


def strongest(
    rows: Iterable[AttackRow], metric: str = "rmse", *, higher_is_better: bool = False
) -> dict[tuple[float, str], tuple[float, AttackRow]]:
    """Per noise level and sample the best value of a metric, and the row that reached it.

    Attacks started at the truth are left out: no attacker can run them. So are rows without a value. Choosing
    the best attack with the truth at hand is the auditor's privilege; it bounds what any of them achieves.
    """
    best: dict[tuple[float, str], tuple[float, AttackRow]] = {}
    for row in rows:
        value = row.metrics.get(metric)
        if value is None or row.oracle_start:
            continue
        key = (row.noise_std, row.sample_id)
        if key not in best or (value > best[key][0] if higher_is_better else value < best[key][0]):
            best[key] = (value, row)
    return best
