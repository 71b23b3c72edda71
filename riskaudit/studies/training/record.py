"""What ``riskaudit study training`` adds to an audit, under ``studies.training``: one run's checkpoints in order.

Errors are RMSEs in data units, larger is safer.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riskaudit.results.base import Record
from riskaudit.studies.rows import ModelsStudy, SampleRisk


class MeanAndWorst(Record):
    """A number over samples, in its units: the mean, and the riskiest sample's.

    Attributes:
        mean: mean over the samples that have a number.
        low: lower end of the mean's bootstrap interval; null where there are too few samples.
        high: upper end of the mean's bootstrap interval; null where there are too few samples.
        worst: the riskiest sample's number.
        worst_sample: id of this sample.
        num_samples: number of samples that have a number.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    worst: float
    worst_sample: str
    num_samples: int


class TrainingRow(Record):
    """One checkpoint of a training.

    Attributes:
        name: name of the file, without its folder.
        sha256: SHA-256 of the file, in hexadecimal digits; null where it comes from no file.
        step: number of the checkpoint's step in training.
        accuracy: on the audited samples, 0 to 1; null where targets aren't classes.
        mean_loss: mean of the loss over samples; null where there is none.
        median_gradient_norm: median over samples of the release's Euclidean norm before noise; null where there is
            none.
        posterior_rmse: posterior error, a root mean square per coordinate in data units.
        relative_noise_std: standard deviation per released entry that is as large beside the median gradient norm as
            the study's noise is at the first checkpoint that can be read.
        relative_rmse: posterior error at that noise, in data units.
        revealed_fraction: revealed fraction, 0 to 1.
        attack_rmse: RMSE of each sample's strongest attack, in data units; null where none ran.
        attack_errors: RMSE of each attack by its id, those made for the defence among them, in data units.
        num_failed_samples: number of samples without a number.
        samples: one entry for each sample.
        attack_notes: what a reader must know of the attacks, one sentence each.
        reason: one sentence on why the checkpoint has no numbers; null where it has some.
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
    """What ``riskaudit study training`` found: how the leak changes over one training's checkpoints.

    Attributes:
        step_source: where the checkpoints' steps were read from.
        rows: one entry for each checkpoint, in the order of training.
        summary: what became of the mean and of the most exposed sample from the first audited checkpoint to the last,
            in words.
        mean_trend: rank correlation of the mean posterior error with the accuracy over checkpoints, from -1 to 1; null
            where there are too few or either is always the same.
        worst_trend: the same of the most exposed sample's posterior error.
    """

    step_source: Literal["file name", "checkpoint", "position"]
    rows: list[TrainingRow]
    summary: str
    mean_trend: float | None = None
    worst_trend: float | None = None
