"""What many samples say together: groups compared, inequality, resampling, agreement. Knows nothing of models."""

from riskaudit.statistics.agreement import agreement_rows, loss_comparisons, reliability_records, timings
from riskaudit.statistics.conformal import ConformalFactors, conformal_factors
from riskaudit.statistics.groups import group_statistic, kruskal_wallis
from riskaudit.statistics.inequality import gini, max_min_ratio
from riskaudit.statistics.probabilities import brier_score, reliability_bins
from riskaudit.statistics.rank_correlation import RankCorrelation, RankDifference, rank_correlation, rank_difference
from riskaudit.statistics.strongest import strongest
from riskaudit.statistics.tightness import Containment, Tightness, containment, tightness

__all__ = [
    "ConformalFactors",
    "Containment",
    "RankCorrelation",
    "RankDifference",
    "Tightness",
    "agreement_rows",
    "brier_score",
    "conformal_factors",
    "containment",
    "gini",
    "group_statistic",
    "kruskal_wallis",
    "loss_comparisons",
    "max_min_ratio",
    "rank_correlation",
    "rank_difference",
    "reliability_bins",
    "reliability_records",
    "strongest",
    "tightness",
    "timings",
]
