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
    """What every attack of a study is given besides the release, the weights and the loss.

    Attributes:
        labels_known: whether the labels.
        batch_norm_statistics_known: whether the statistics of batch norm.
        rest_of_batch_known: whether all other samples of an upload.
        prior: kind of prior that it is given.
        input_range_known: whether the least and the largest value of an input.
    """

    labels_known: bool
    batch_norm_statistics_known: bool
    rest_of_batch_known: bool
    prior: str
    input_range_known: bool


class Prediction(Record):
    """What the proxies said of one sample at one noise level, before any attack ran.

    Attributes:
        noise_std: standard deviation of the noise per released entry; 0 where there is none.
        sample_id: id of the sample, as in ``samples`` of the file.
        proxies: number of each proxy by its id, in the units that ``prediction_info`` states.
        success_probability: one entry for each tolerance, ascending.
        calibrated: interval that a calibration gives each proxy, by its id.
        seconds: time that all proxies took; null where it isn't known.
    """

    noise_std: float
    sample_id: str
    proxies: dict[str, Estimate]
    success_probability: list[SuccessProbability] = Field(default_factory=list)
    calibrated: dict[str, Estimate] = Field(default_factory=dict)
    seconds: float | None = None


class AgreementRow(RankCorrelation):
    """How well one proxy foresaw one metric of one attack, over samples at one noise level.

    Tightness is attack RMSE over predicted RMSE, for proxies that predict an RMSE and for the metric "rmse" only; what
    follows from it is null elsewhere.

    Attributes:
        noise_std: standard deviation of the noise per released entry; 0 where there is none.
        attack: id of the attack, or "strongest" for the least error of each sample over all attacks without oracle
            start.
        metric: id of the metric.
        proxy: id of the proxy.
        tightness_median: median of the tightness.
        tightness_lower_quartile: lower quartile of the tightness.
        tightness_upper_quartile: upper quartile of the tightness.
        share_below_nine_tenths: share of samples whose tightness is below 0.9, 0 to 1.
        share_below_three_quarters: share of samples whose tightness is below 0.75, 0 to 1.
        validity: share of samples whose attack is not below the lower end of the prediction's interval, 0 to 1.
        coverage: share of samples whose attack lies in the prediction's interval, 0 to 1.
        calibrated_validity: validity of the interval that a calibration gives; null without one.
        calibrated_coverage: coverage of the interval that a calibration gives; null without one.
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
    """Samples whose predicted success probability fell into one bin, and how often the strongest attack succeeded.

    Attributes:
        low: lower end of the bin, 0 to 1.
        high: upper end of the bin, 0 to 1.
        num_samples: number of samples in the bin.
        mean_predicted: mean of their predicted probabilities.
        observed: share of them that the strongest attack came within the tolerance of, 0 to 1.
    """

    low: float
    high: float
    num_samples: int
    mean_predicted: float
    observed: float


class Reliability(Record):
    """The success probability held against the strongest attack, at one noise level and tolerance.

    Attributes:
        noise_std: standard deviation of the noise per released entry; 0 where there is none.
        tolerance: root mean square per coordinate, in data units, that counts as a success.
        num_samples: number of samples.
        brier: Brier score, the mean squared difference of predicted probability and outcome, 0 (best) to 1.
        bins: one entry for each bin that isn't empty, ascending.
    """

    noise_std: float
    tolerance: float
    num_samples: int
    brier: float
    bins: list[ReliabilityBin]


class LossComparison(Record):
    """Whether the proxy of an attack's own matching loss ranks that attack's errors better than another one.

    This is the claim of Hong et al., AAAI 2024.

    Attributes:
        noise_std: standard deviation of the noise per released entry; 0 where there is none.
        attack: id of the attack.
        metric: id of the metric.
        own: id of the proxy that is made for the attack's matching loss.
        other: id of the other proxy.
        num_samples: number of samples that have both and the metric.
        own_spearman: absolute rank correlation of ``own`` with the metric, 0 to 1; null where there is none.
        other_spearman: the same of ``other``.
        difference: own_spearman minus other_spearman; null where there is none.
        low: lower end of its paired bootstrap interval; null where there is none.
        high: upper end of this interval.
        p_value: two-sided, of the difference being 0; null where there is none.
        own_rho: rank correlation of ``own`` with its sign, -1 to 1; null where there is none, and in audits of older
            versions.
        other_rho: the same of ``other``.
        note: one sentence on why there is no difference; null where there is one.
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
    """What the guess that needs no release comes to: the prior's mean.

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        metrics: its quality by metric, in the units that ``metric_info`` states; null where a metric isn't applicable.
    """

    sample_id: str
    metrics: dict[str, float | None]


class Timing(Record):
    """How long proxies and an attack took.

    Attributes:
        noise_std: standard deviation of the noise per released entry; 0 where there is none.
        attack: id of the attack.
        proxy_seconds: median seconds per sample of all proxies; null where they aren't known.
        attack_seconds: median seconds per sample of the attack; null where they aren't known.
    """

    noise_std: float
    attack: str
    proxy_seconds: float | None
    attack_seconds: float | None


class VerifyStudy(StudyRecord):
    """What ``riskaudit verify`` found: attacks that were run, and how well proxies foresaw them.

    Attributes:
        control: the positive control: whether these attacks reconstruct where nothing defends.
        knowledge: what every attack was given.
        attacks: one entry for each attack, sample and noise level.
        agreement: one entry for each proxy, metric, attack and noise level.
        predictions: one entry for each sample and noise level.
        prior_only: one entry for each sample that was attacked.
        reliability: one entry for each noise level and tolerance.
        loss_comparisons: one entry for each noise level, attack, metric and other proxy.
        timings: one entry for each attack and noise level.
        metric_notes: what a reader must know of a metric, by its id.
        attack_settings: each attack's hyper-parameters by name, by the attack's id.
        attack_info: what the attacks' ids mean, in the order of tables.
        metric_info: what the metrics' ids mean, in the order of tables.
        prediction_info: what the proxies' ids mean, in the order of tables.
        complete: whether all attacks came to their end.
        stopped_by: what ended the study before; null where nothing did.
        foretold: time that the study was to take; null where it wasn't asked for.
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
