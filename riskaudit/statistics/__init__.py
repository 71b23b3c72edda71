"""What many samples say together: groups compared, inequality, resampling. Knows nothing of models."""

from riskaudit.statistics.conformal import ConformalFactors, conformal_factors
from riskaudit.statistics.groups import (
    PairTest,
    epsilon_squared,
    group_statistic,
    holm,
    kruskal_wallis,
    mann_whitney,
    pair_tests,
)
from riskaudit.statistics.inequality import gini, lorenz_curve, max_min_ratio, top_share
from riskaudit.statistics.rank_correlation import RankCorrelation, RankDifference, rank_correlation, rank_difference

__all__ = [
    "ConformalFactors",
    "PairTest",
    "RankCorrelation",
    "RankDifference",
    "conformal_factors",
    "epsilon_squared",
    "gini",
    "group_statistic",
    "holm",
    "kruskal_wallis",
    "lorenz_curve",
    "mann_whitney",
    "max_min_ratio",
    "pair_tests",
    "rank_correlation",
    "rank_difference",
    "top_share",
]
