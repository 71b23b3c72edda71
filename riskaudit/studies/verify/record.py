"""What ``riskaudit verify`` adds to an audit, under ``studies.verify``: attacks run and how well proxies foresaw them.

Units as in `riskaudit.results.audit`; ``noise_std`` is the standard deviation of the Gaussian noise on
every released entry, 0 where the release carries none.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riskaudit.results.base import Estimate, Record, SuccessProbability
from riskaudit.results.studies import StudyRecord
from riskaudit.results.words import AttackInfo, MetricInfo, ProxyInfo
from riskaudit.statistics.rank_correlation import RankCorrelation
from riskaudit.studies.rows import AttackRow, Control, Forecast

# Attack of the agreement rows that take, per sample, the least error over all attacks without oracle start
# (the systematic-evaluation paper's Eq. 3).
STRONGEST = "strongest"


class AttackerKnowledge(Record):
    """What every attack of a study is given besides the release, the weights and the loss."""

    labels_known: bool
    batch_norm_statistics_known: bool
    rest_of_batch_known: bool
    prior: str
    input_range_known: bool


class Prediction(Record):
    """What the proxies said of one sample at one noise level, before any attack ran."""

    noise_std: float
    sample_id: str
    proxies: dict[str, Estimate]
    success_probability: list[SuccessProbability] = Field(default_factory=list)
    calibrated: dict[str, Estimate] = Field(default_factory=dict)
    seconds: float | None = None


class AgreementRow(RankCorrelation):
    """How well one proxy foresaw one metric of one attack, over samples at one noise level.

    ``spearman`` and ``kendall`` carry bootstrap intervals. Tightness is attack RMSE / predicted RMSE, for proxies
    that predict an RMSE and for the metric "rmse" only; ``coverage`` is the share of samples whose attack lies
    in the prediction's interval, ``validity`` the share where it is not below the interval's lower end; both
    None where there is no interval.
    """

    noise_std: float
    attack: str
    metric: str
    proxy: str
    tightness_median: float | None = None
    tightness_lower_quartile: float | None = None
    tightness_upper_quartile: float | None = None
    share_below_nine_tenths: float | None = None
    share_below_three_quarters: float | None = None
    validity: float | None = None
    coverage: float | None = None
    calibrated_validity: float | None = None
    calibrated_coverage: float | None = None


class ReliabilityBin(Record):
    """Samples whose predicted success probability fell into one bin, and how often the strongest attack succeeded."""

    low: float
    high: float
    num_samples: int
    mean_predicted: float
    observed: float


class Reliability(Record):
    """The success probability held against the strongest attack, at one noise level and tolerance."""

    noise_std: float
    tolerance: float
    num_samples: int
    brier: float
    bins: list[ReliabilityBin]


class LossComparison(Record):
    """Whether the proxy of an attack's own matching loss ranks that attack's errors better than another one.

    Difference of the absolute rank correlations with ``metric`` and its paired bootstrap interval and p-value
    (the claim of Hong et al., AAAI 2024). ``own_rho`` and ``other_rho`` are the correlations with their signs, which
    audits of older versions lack.
    """

    noise_std: float
    attack: str
    metric: str
    own: str
    other: str
    num_samples: int
    own_spearman: float | None
    other_spearman: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    own_rho: float | None = None
    other_rho: float | None = None
    note: str | None = None


class PriorOnly(Record):
    """Metrics of the guess that needs no release: the prior mean."""

    sample_id: str
    metrics: dict[str, float | None]


class Timing(Record):
    """Median seconds per sample of all proxies, and of an attack."""

    noise_std: float
    attack: str
    proxy_seconds: float | None
    attack_seconds: float | None


class VerifyStudy(StudyRecord):
    """``studies.verify`` of audit.json.

    ``attack_info``, ``metric_info`` and ``prediction_info`` say what the ids in the rows mean, in the order of tables.
    ``complete`` is false where the study was ended by what ``stopped_by`` says; ``foretold`` is what it was to take.
    """

    control: Control
    knowledge: AttackerKnowledge
    attacks: list[AttackRow]
    agreement: list[AgreementRow]
    predictions: list[Prediction] = Field(default_factory=list)
    prior_only: list[PriorOnly] = Field(default_factory=list)
    reliability: list[Reliability] = Field(default_factory=list)
    loss_comparisons: list[LossComparison] = Field(default_factory=list)
    timings: list[Timing] = Field(default_factory=list)
    metric_notes: dict[str, str] = Field(default_factory=dict)
    attack_settings: dict[str, dict[str, float | int | str | bool | None]] = Field(default_factory=dict)
    attack_info: list[AttackInfo] = Field(default_factory=list)
    metric_info: list[MetricInfo] = Field(default_factory=list)
    prediction_info: list[ProxyInfo] = Field(default_factory=list)
    complete: bool = True
    stopped_by: Literal["interrupt", "budget"] | None = None
    foretold: Forecast | None = None
