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

    Errors are RMSEs in data units. Where several samples leave together ``posterior_rmse`` and ``revealed_fraction``
    are those of the attacker by whom verdicts go. ``attack_rmse`` is that of the strongest attack, ``oracle_rmse`` that
    of the attack that is started at the truth; both None where none ran. ``attack_errors`` are by the attacks' names.
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
    """Median and quartiles of ``num_values`` numbers.

    A quartile is None where it is infinite: of ``num_values``, ``num_infinite`` are (an error that no finite number
    describes, since the release is singular).
    """

    lower: float | None
    median: float | None
    upper: float | None
    num_values: int
    num_infinite: int = 0


class Control(Record):
    """The positive control: attacks on an undefended release of a registered lenet, which must reconstruct.

    ``rmse`` is the median of the strongest attack over the control's samples, ``limit`` what it had to reach.
    """

    status: Literal["passed", "failed", "skipped"]
    rmse: float | None
    limit: float | None = None
    attack: str | None = None
    num_samples: int = 0
    reason: str | None = None


class ModelsStudy(StudyRecord):
    """What studies of several models record alike; ``noise_std`` is that of the predictions and of the attacks."""

    architecture: str
    noise_std: float
    reference_noise: bool
    prior_rmse: float
    attacks: list[str] = Field(default_factory=list)
    control: Control | None = None


class AttackRow(Record):
    """One attack on one sample at one noise level.

    ``metrics`` are of the reconstruction that the attacker's own objective chose; None where one isn't
    applicable. Where the client transforms its images they are against T(x), and ``original_metrics`` against x.
    ``objective`` is the attacker's own. ``seconds`` is this sample's share of a batched run.
    ``image_png`` is there only when the user asked to show samples. ``ended_by`` says why the sample had no further
    start: its residual is at the noise floor, or its first start got stuck and doesn't invert its undefended gradient
    either (``control``); None where all starts were used. ``confidence`` is the attacker's own, from 0 to 1, where the
    attack says one. Of texts, ``tokens_right`` says of every position whether the vocabulary's nearest token to the
    reconstruction is the true one, None where everybody knows what stands there (the tokenizer's own tokens, the mask);
    ``tokens`` are the reconstructed ones in words, only where the user asked to show samples.
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
    """Seconds that one attack will take on all samples at all noise levels, as a `Forecast` has them."""

    attack: str
    low: float
    high: float
    most: float


class Forecast(Record):
    """Seconds that a study will take on this machine, foretold from a few timed steps on ``num_timed`` samples.

    Between ``low`` and ``high`` where searches don't get stuck, ``most`` where all do. ``audit`` is the audits' share.
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
