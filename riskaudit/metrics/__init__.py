"""Reconstructions against the truth, per sample; importing this package registers every metric.

Attacks never see these: a metric is the only place where a reconstruction meets the private input.
"""

from riskaudit.metrics import features, perceptual, pixels, structure
from riskaudit.metrics.base import METRICS, Metric, Subject, make_metrics, measure, metric_notes, prior_only

__all__ = [
    "METRICS",
    "Metric",
    "Subject",
    "features",
    "make_metrics",
    "measure",
    "metric_notes",
    "perceptual",
    "pixels",
    "prior_only",
    "structure",
]
