"""What ``riskaudit study training`` adds to an audit, under ``studies.training``: one run's checkpoints in order.

Errors are RMSEs in data units, larger is safer.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riskaudit.results.base import Record
from riskaudit.studies.rows import ModelsStudy, SampleRisk


class MeanAndWorst(Record):
    """A number over samples: the mean with its bootstrap interval, and the riskiest sample's.

    The interval is None where there are too few samples for one.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    worst: float
    worst_sample: str
    num_samples: int


class TrainingRow(Record):
    """One checkpoint. ``accuracy`` is on the audited samples, None where targets aren't classes.

    ``relative_rmse`` is the posterior error at noise of ``relative_noise_std``, which is as large beside the median
    gradient norm as the study's noise is at the first checkpoint that can be read. ``attack_rmse`` is of each sample's
    strongest attack, ``attack_errors`` are of each attack by its name, those made for the defence among them.
    ``reason`` says why a checkpoint has no numbers, where it has none.
    """

    name: str
    sha256: str | None
    step: int
    accuracy: float | None = None
    mean_loss: float | None = None
    median_gradient_norm: float | None = None
    posterior_rmse: MeanAndWorst | None = None
    relative_noise_std: float | None = None
    relative_rmse: MeanAndWorst | None = None
    revealed_fraction: MeanAndWorst | None = None
    attack_rmse: MeanAndWorst | None = None
    attack_errors: dict[str, MeanAndWorst] = Field(default_factory=dict)
    num_failed_samples: int = 0
    samples: list[SampleRisk] = Field(default_factory=list)
    attack_notes: list[str] = Field(default_factory=list)
    reason: str | None = None


class TrainingStudy(ModelsStudy):
    """``studies.training`` of audit.json; ``rows`` in the order of training.

    ``summary`` says what became of the mean and of the most exposed sample from the first audited checkpoint to the
    last. ``mean_trend`` and ``worst_trend`` are rank correlations of posterior_rmse with the accuracy over checkpoints,
    None where there are too few or either is always the same.
    """

    step_source: Literal["file name", "checkpoint", "position"]
    rows: list[TrainingRow]
    summary: str
    mean_trend: float | None = None
    worst_trend: float | None = None
