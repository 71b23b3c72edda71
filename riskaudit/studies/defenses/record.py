"""What ``riskaudit study defenses`` adds to an audit, under ``studies.defenses``: risk against utility, by defence.

A defence is a release's description. Errors are RMSEs in data units, larger is safer; losses are means over the
training data, smaller is better.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from riskaudit.results.base import Estimate, Record, Status
from riskaudit.studies.rows import ModelsStudy

RunStatus: TypeAlias = Literal["finished", "unaudited", "diverged", "failed"]
"""Of one training; "unaudited" where it came to its end and some point of it can't be audited, "diverged" where a loss,
a weight or an update isn't finite, "failed" where the training itself can't go on for another reason."""


class DefendedSample(Record):
    """One audited sample at one point of a training.

    Where samples leave alone there is no ``informed_rmse`` apart from ``outsider_rmse``, which is the sample's.
    ``relative_rmse`` is the deciding attacker's at noise relative to the gradient's norm (`TrainingPoint`).
    ``attack_rmse`` is the least matched error of the attacks, ``attack`` the one that reached it; attacks that are
    started at the truth never count.
    """

    sample_id: str
    status: Status
    reason: str | None = None
    outsider_rmse: Estimate
    informed_rmse: Estimate | None = None
    relative_rmse: Estimate | None = None
    attack_rmse: float | None = None
    attack: str | None = None


class TrainingPoint(Record):
    """The network after ``step`` steps. ``accuracy`` is on the test data, None without.

    ``noise_std`` is of every entry of an upload, the reference noise where the defence has none;
    ``relative_noise_std`` is as large beside the median norm of what the samples' uploads are before noise
    (``gradient_norm``) as ``noise_std`` is before the first step. ``reason`` says why there are no samples, where there
    are none.
    """

    step: int
    loss: float | None
    accuracy: float | None = None
    noise_std: float | None = None
    relative_noise_std: float | None = None
    gradient_norm: float | None = None
    samples: list[DefendedSample] = Field(default_factory=list)
    attack_notes: list[str] = Field(default_factory=list)
    reason: str | None = None


class DefenseRun(Record):
    """One training with one defence; ``number`` counts seeds from 0. The last point is the end of training."""

    defense: str
    number: int
    status: RunStatus
    reason: str | None = None
    points: list[TrainingPoint] = Field(default_factory=list)


class SeedMean(Record):
    """A mean over ``num_seeds`` trainings with Student's t interval, which needs two of them."""

    mean: float
    low: float | None = None
    high: float | None = None
    num_seeds: int


class PointRow(Record):
    """One point of training, over samples and seeds; errors are means over samples, intervals over seeds."""

    step: int
    loss: SeedMean | None = None
    accuracy: SeedMean | None = None
    attack_rmse: SeedMean | None = None
    outsider_rmse: SeedMean | None = None
    informed_rmse: SeedMean | None = None
    relative_rmse: SeedMean | None = None


class DefenseRow(Record):
    """One defence over its seeds.

    ``num_finished`` trainings have all of their numbers. ``loss`` and ``accuracy`` are at the end of training, of those
    that came there. The errors are the mean over samples of each one's least error
    over the points of training: an attacker sees all uploads. ``predicted_rmse`` is the posterior error of the attacker
    by whom verdicts go, the certified lower end where it is an interval. ``least_attack`` and ``least_predicted`` are
    of the most exposed sample in any seed.

    ``on_front`` says whether no other defence is at least as good in both mean loss and mean least attack error, and
    better in one; ``dominated_by`` names those that are. None where the defence has no two numbers to compare.
    """

    defense: str
    noisy: bool
    num_seeds: int
    num_finished: int
    loss: SeedMean | None = None
    accuracy: SeedMean | None = None
    attack_rmse: SeedMean | None = None
    predicted_rmse: SeedMean | None = None
    outsider_rmse: SeedMean | None = None
    least_attack: float | None = None
    least_predicted: float | None = None
    num_unattacked: int = 0
    num_unpredicted: int = 0
    strongest: list[str] = Field(default_factory=list)
    on_front: bool | None = None
    dominated_by: list[str] = Field(default_factory=list)
    points: list[PointRow] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list)


class EqualUtility(Record):
    """Two defences whose intervals of the final loss overlap.

    ``attack_difference`` is the least attack error of ``first`` less that of ``second``, paired by sample and seed,
    with a bootstrap interval over both; ``predicted_difference`` likewise of the posterior error. Ends are None with
    too few samples or seeds. ``told_apart`` says whether the first interval leaves out 0.
    """

    first: str
    second: str
    attack_difference: float | None = None
    attack_low: float | None = None
    attack_high: float | None = None
    predicted_difference: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    told_apart: bool | None = None


class DefensesStudy(ModelsStudy):
    """``studies.defenses`` of audit.json; ``rows`` in the order given, no defence first.

    ``noise_std`` is the reference noise, at which defences without noise of their own are predicted; attacks on
    them see none.
    ``recommended`` is a line for ``release``; None where the numbers support none, and ``recommendation`` says why.
    """

    epochs: int
    num_steps: int
    batch_size: int
    learning_rate: float
    num_training_samples: int
    num_seeds: int
    points: list[int]
    confidence: float
    target_rmse: float
    tested: bool
    rows: list[DefenseRow]
    equal_utility: list[EqualUtility] = Field(default_factory=list)
    runs: list[DefenseRun] = Field(default_factory=list)
    recommended: str | None = None
    recommendation: str
