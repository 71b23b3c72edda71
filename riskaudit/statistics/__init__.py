"""What many samples say together: groups compared, inequality, resampling. Knows nothing of models."""

from riskaudit.statistics.groups import group_statistic, kruskal_wallis
from riskaudit.statistics.inequality import gini, max_min_ratio

__all__ = ["gini", "group_statistic", "kruskal_wallis", "max_min_ratio"]
