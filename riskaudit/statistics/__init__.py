"""What many samples say together: groups compared, inequality, resampling, agreement. Knows nothing of models."""

from riskaudit.statistics.agreement import agreement_rows, loss_comparisons, reliability_records, timings
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
from riskaudit.statistics.predictions import (
    Containment,
    Tightness,
    brier_score,
    containment,
    reliability_bins,
    tightness,
)
from riskaudit.statistics.rank_correlation import RankCorrelation, RankDifference, rank_correlation, rank_difference
from riskaudit.statistics.strongest import strongest

__all__ = [
    "ConformalFactors",
    "Containment",
    "PairTest",
    "RankCorrelation",
    "RankDifference",
    "Tightness",
    "agreement_rows",
    "brier_score",
    "conformal_factors",
    "containment",
    "epsilon_squared",
    "gini",
    "group_statistic",
    "holm",
    "kruskal_wallis",
    "lorenz_curve",
    "loss_comparisons",
    "mann_whitney",
    "max_min_ratio",
    "pair_tests",
    "rank_correlation",
    "rank_difference",
    "reliability_bins",
    "reliability_records",
    "strongest",
    "tightness",
    "timings",
    "top_share",
]
