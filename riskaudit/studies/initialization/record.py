"""What ``riskaudit study initialization`` adds to an audit, under ``studies.initialization``.

Errors are RMSEs in data units, larger is safer.
"""

from __future__ import annotations

from pydantic import Field

from riskaudit.results.base import Record
from riskaudit.studies.rows import ModelsStudy, Quartiles, SampleRisk

# Initializations for readers.
TITLES = {
    "uniform": "uniform (−0.5, 0.5)",
    "normal": "normal, same variance",
    "kaiming_uniform": "Kaiming uniform",
    "kaiming_normal": "Kaiming normal",
    "xavier_uniform": "Xavier uniform",
    "xavier_normal": "Xavier normal",
    "orthogonal": "orthogonal",
    "default": "PyTorch's default",
    "checkpoint": "the checkpoint itself",
}


class InitializationTrial(Record):
    """One initialization with one seed; ``number`` counts seeds from 0, None for the checkpoint itself.

    ``reason`` says why there are no samples, where there are none.
    """

    initialization: str
    number: int | None
    samples: list[SampleRisk] = Field(default_factory=list)
    attack_notes: list[str] = Field(default_factory=list)
    reason: str | None = None


class InitializationRow(Record):
    """One initialization over its seeds and all samples.

    ``low`` and ``high`` are a bootstrap interval of the median posterior_rmse over samples and seeds. ``difference`` is
    the best initialization's median minus this one's, with the interval of the paired bootstrap; ``told_apart`` says
    whether that leaves out 0, None where no interval is known or for the best itself (which the checkpoint can't be).
    ``reasons`` say which seeds or samples gave no number.
    """

    initialization: str
    description: str
    num_seeds: int
    num_failed_seeds: int = 0
    num_failed_samples: int = 0
    rank: int | None = None
    largest_eigenvalue: Quartiles | None = None
    trace: Quartiles | None = None
    expected_rmse: Quartiles | None = None
    posterior_rmse: Quartiles | None = None
    revealed_fraction: Quartiles | None = None
    attack_rmse: Quartiles | None = None
    oracle_rmse: Quartiles | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    told_apart: bool | None = None
    reasons: list[str] = Field(default_factory=list)


class InitializationStudy(ModelsStudy):
    """``studies.initialization`` of audit.json; ``rows`` are ranked, least leakage first, failed ones last."""

    num_seeds: int
    confidence: float
    rows: list[InitializationRow]
    trials: list[InitializationTrial]
    recommended: str | None = None
    recommendation: str
