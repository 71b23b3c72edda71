"""What ``riskaudit study fairness`` adds to an audit, under ``studies.fairness``: on whom the leak falls.

Measures are the proxies "revealed_fraction" and "posterior_rmse" (where several samples leave together those of the
attacker by whom verdicts go), and `ATTACK_RMSE`, the strongest attack's error at the audit's own noise level. Units as
in `riskaudit.results.audit`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riskaudit.results.base import Estimate, Record, Target
from riskaudit.results.groups import ClassTest, GroupStatistic
from riskaudit.results.studies import StudyRecord
from riskaudit.statistics.groups import PairTest

# The least RMSE over all attacks without oracle start.
ATTACK_RMSE = "attack_rmse"
# What samples without a group of their own form.
NO_GROUP = "none"


class LorenzPoint(Record):
    """The share ``quantity`` of a measure's sum that the share ``samples`` with the least of it holds."""

    samples: float
    quantity: float


class Distribution(Record):
    """How unevenly one measure falls on samples, over the ``num_samples`` whose value may be relied on.

    ``worst`` is the riskiest value: the greatest of a measure that is riskier when higher, else the least.
    ``worst_tenth_share`` is what the riskiest tenth of the samples holds of the measure's sum; 0.1 if all are alike.
    """

    measure: str
    riskier: Literal["higher", "lower"]
    num_samples: int
    num_left_out: int
    mean: float | None = None
    median: float | None = None
    worst: float | None = None
    worst_sample: str | None = None
    worst_to_median: float | None = None
    gini: float | None = None
    worst_tenth_share: float | None = None
    lorenz: list[LorenzPoint] = Field(default_factory=list)
    note: str | None = None


class GroupSummary(Record):
    """One group; ``num_samples`` counts all its samples, the statistic and the median those with a value."""

    name: str
    num_samples: int
    median: float | None = None
    statistic: GroupStatistic | None = None


class GroupPair(PairTest):
    """The test of two groups, and whether they differ."""

    differs: bool


class GroupComparison(Record):
    """Whether groups differ in one measure, which ones and by how much.

    ``epsilon_squared`` is the effect size of the Kruskal-Wallis test, 0 to 1. ``differs`` is None where nothing could
    be tested. ``groups`` stand with the most exposed median first. ``note`` says where the pairs could not have
    differed, whatever their values, ``doubt`` where medians rest on intervals.
    """

    by: Literal["class", "group"]
    measure: str
    groups: list[GroupSummary]
    kruskal_wallis: ClassTest
    epsilon_squared: float | None = None
    differs: bool | None = None
    pairs: list[GroupPair] = Field(default_factory=list)
    note: str | None = None
    doubt: str | None = None


class SampleExposure(Record):
    """One sample beside the average.

    ``posterior_rmse`` is that of the attacker by whom verdicts go, ``protection`` its cautious (lower) end, None where
    that can't be relied on; such a sample is not assessed, never safe. ``share_of_average`` is protection over the
    mean posterior error.
    ``influence`` is sqrt(l_1) with the upper end of l_1: the most that training's release changes, to first order,
    per change of the input (Euclidean norms of both).
    """

    sample_id: str
    target: Target | None
    group: str | None = None
    posterior_rmse: Estimate | None = None
    protection: float | None = None
    share_of_average: float | None = None
    influence: float | None = None
    attack_rmse: float | None = None


class InfluenceLink(Record):
    """Spearman's correlation of `SampleExposure.influence` with revealed_fraction, and its bootstrap interval."""

    num_samples: int
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


class FairnessStudy(StudyRecord):
    """``studies.fairness`` of audit.json.

    ``exposed`` lists samples whose protection is below ``threshold`` times the average, ``not_assessed`` those of
    which nothing may be claimed.
    """

    noise_std: float | None
    groups_name: str | None = None
    distributions: list[Distribution]
    comparisons: list[GroupComparison]
    average_protection: float | None
    threshold: float
    exposed: list[str]
    not_assessed: list[str]
    samples: list[SampleExposure]
    influence: InfluenceLink
