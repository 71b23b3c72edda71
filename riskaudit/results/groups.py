"""Statistics of groups of samples, such as classes."""

from __future__ import annotations

from riskaudit.results.base import Record, Status


class GroupStatistic(Record):
    """One proxy over one group of samples; ``low``/``high`` is a bootstrap interval of the mean.

    The interval is ``None`` and ``note`` says so where there are too few samples. Where the samples' own numbers are
    intervals, ``mean_low``/``mean_high`` is the interval that they leave for the mean, over all samples that have one,
    with a point value or without.
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
    """Kruskal-Wallis test that all classes have the same distribution of a proxy."""

    statistic: float | None = None
    p_value: float | None = None
    status: Status
    note: str | None = None
