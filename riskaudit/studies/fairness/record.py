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
    """A point of the Lorenz curve of a measure.

    Attributes:
        samples: share of the samples with the least of the measure, 0 to 1.
        quantity: share of the measure's sum that these hold, 0 to 1.
    """

    samples: float
    quantity: float


class Distribution(Record):
    """How unevenly one measure falls on samples, over those whose value may be relied on.

    Attributes:
        measure: "revealed_fraction", "posterior_rmse" or "attack_rmse".
        riskier: which end of the measure is the greater risk.
        num_samples: number of samples whose value may be relied on.
        num_left_out: number of the others.
        mean: mean of the values, in the measure's units; null without any.
        median: median of the values, in the measure's units; null without any.
        worst: the riskiest value, in the measure's units; null without any.
        worst_sample: id of the sample that has it; null without any.
        worst_to_median: the riskiest value over the median; null where that is 0.
        gini: Gini coefficient, 0 (all alike) to 1; null where there is none.
        worst_tenth_share: share of the measure's sum that the riskiest tenth of the samples holds, 0.1 if all are
            alike; null where there is none.
        lorenz: points of the Lorenz curve, ascending.
        note: one sentence on what can't be told; null where there is nothing to say.
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
    """One group in one measure.

    Attributes:
        name: name of the group.
        num_samples: number of all its samples, with a value or without.
        median: median of the samples with a value, in the measure's units; null where none has one.
        statistic: statistics over the samples with a value; null where none has one.
    """

    name: str
    num_samples: int
    median: float | None = None
    statistic: GroupStatistic | None = None


class GroupPair(PairTest):
    """The test of two groups, and whether they differ.

    Attributes:
        differs: whether the adjusted p-value says so.
    """

    differs: bool


class GroupComparison(Record):
    """Whether groups differ in one measure, which ones and by how much.

    Attributes:
        by: whether groups are the classes or were given.
        measure: "revealed_fraction", "posterior_rmse" or "attack_rmse".
        groups: one entry for each group, the most exposed median first.
        kruskal_wallis: test that all groups have the same distribution.
        epsilon_squared: effect size of that test, 0 to 1; null where nothing could be tested.
        differs: whether some group differs; null where nothing could be tested.
        pairs: tests of two groups each.
        note: one sentence where the pairs could not have differed, whatever their values; null elsewhere.
        doubt: one sentence where medians rest on intervals; null elsewhere.
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

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        target: class number; null for other targets.
        group: name of its group; null where no groups were given.
        posterior_rmse: posterior error of the attacker by whom verdicts go, a root mean square per coordinate in data
            units; null where there is none.
        protection: its cautious (lower) end; null where that can't be relied on: such a sample is not assessed, never
            safe.
        share_of_average: protection over the mean posterior error; null where either is unknown.
        influence: sqrt(l_1) with the upper end of l_1: the most that training's release changes, to first order, per
            change of the input (Euclidean norms of both); null where unknown.
        attack_rmse: RMSE of the strongest attack, in data units; null where none ran.
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
    """Rank correlation of the samples' ``influence`` with their revealed fraction.

    Attributes:
        num_samples: number of samples that have both.
        spearman: Spearman's rho, from -1 to 1; null where there is none.
        low: lower end of its bootstrap interval; null where there is none.
        high: upper end of its bootstrap interval; null where there is none.
        note: one sentence on why there is none; null where there is one.
    """

    num_samples: int
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


class FairnessStudy(StudyRecord):
    """What ``riskaudit study fairness`` found: on whom the leak falls.

    Attributes:
        noise_std: standard deviation of the release's noise per entry, or of the reference noise where it carries none.
        groups_name: name of the file or column that the groups come from; null where none were given.
        distributions: one entry for each measure.
        comparisons: one entry for each measure and kind of group.
        average_protection: mean posterior error, a root mean square per coordinate in data units; null where none is
            known.
        threshold: share of the average below which a sample counts as exposed.
        exposed: ids of the samples whose protection is below ``threshold`` times the average.
        not_assessed: ids of the samples of which nothing may be claimed.
        samples: one entry for each sample.
        influence: how the samples' influence on training goes with what is revealed of them.
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
