"""Statistics of groups of samples, such as classes."""

from __future__ import annotations

from riskaudit.results.base import Record, Status


class GroupStatistic(Record):
    """One proxy over one group of samples, in the proxy's units.

    Attributes:
        mean: mean of the samples with a value.
        min: the least value.
        max: the largest value.
        std: standard deviation over samples (divisor n - 1); null with one sample.
        low: lower end of the bootstrap interval of the mean; null where there are too few samples.
        high: upper end of the bootstrap interval of the mean; null where there are too few samples.
        confidence: confidence of the bootstrap interval, 0 to 1; null without one.
        num_samples: number of samples with a value.
        note: one sentence on why there is no interval; null where there is one.
        mean_low: lower end that the samples' own intervals leave for the mean, over all that have one, with a point
            value or without; null where all are points.
        mean_high: upper end likewise.
    """

    mean: float
    min: float
    max: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    num_samples: int | None = None
    note: str | None = None
    mean_low: float | None = None
    mean_high: float | None = None


class ClassTest(Record):
    """Kruskal-Wallis test that all classes have the same distribution of a proxy.

    Attributes:
        statistic: the test's H; null where nothing could be tested.
        p_value: its p-value, 0 to 1; null where nothing could be tested.
        status: "not_applicable" where too few classes have enough samples.
        note: one sentence on what was left out or why nothing was tested; null where there is nothing to say.
    """

    statistic: float | None = None
    p_value: float | None = None
    status: Status
    note: str | None = None
