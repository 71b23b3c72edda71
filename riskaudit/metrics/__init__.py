"""Reconstructions against the truth, per sample; importing this package registers the metric of every file here.

Attacks never see these: a metric is the only place where a reconstruction meets the private input.
"""

from importlib import import_module
from pkgutil import iter_modules

from riskaudit.metrics.base import (
    METRICS,
    Metric,
    Subject,
    TextVocabulary,
    make_metrics,
    measure,
    metric_notes,
    prior_only,
    reported_metrics,
)

__all__ = [
    "METRICS",
    "Metric",
    "Subject",
    "TextVocabulary",
    "make_metrics",
    "measure",
    "metric_notes",
    "prior_only",
    "reported_metrics",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
