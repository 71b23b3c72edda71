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

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        status: status of the posterior error of the attacker by whom verdicts go.
        reason: one sentence on why there is no number; null where there is one.
        outsider_rmse: posterior error of an attacker who knows no other sample of the upload, a root mean square per
            coordinate in data units; where samples leave alone, the sample's own.
        informed_rmse: posterior error of an attacker who knows all others, in data units; null where samples leave
            alone.
        relative_rmse: the deciding attacker's posterior error at noise relative to the gradient's norm, in data units;
            null where there is none.
        attack_rmse: least matched RMSE of the attacks, in data units; attacks that are started at the truth never
            count; null where none ran.
        attack: id of the attack that reached it; null where none ran.
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
    """The network after some steps of a training.

    Attributes:
        step: number of steps.
        loss: mean over the training data; null where it isn't finite.
        accuracy: on the test data, 0 to 1; null without such data.
        noise_std: standard deviation of the noise of every entry of an upload, the reference noise where the defence
            has none; null where there are no samples.
        relative_noise_std: standard deviation that is as large beside ``gradient_norm`` as ``noise_std`` is before the
            first step; null where there is none.
        gradient_norm: median Euclidean norm of what the samples' uploads are before noise; null where there is none.
        samples: one entry for each audited sample.
        attack_notes: what a reader must know of the attacks, one sentence each.
        reason: one sentence on why there are no samples; null where there are some.
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
    """One training with one defence.

    Attributes:
        defense: the release's description, as the option ``--release`` takes it.
        number: number of the seed, from 0.
        status: "finished"; "unaudited" where some point can't be audited; "diverged" where a loss, a weight or an
            update isn't finite; "failed" where the training can't go on for another reason.
        reason: one sentence on why it isn't finished; null where it is.
        points: one entry for each audited point of training, the last being its end.
    """

    defense: str
    number: int
    status: RunStatus
    reason: str | None = None
    points: list[TrainingPoint] = Field(default_factory=list)


class SeedMean(Record):
    """A mean over trainings, in its units, with Student's t interval.

    Attributes:
        mean: mean over trainings.
        low: lower end of the interval; null with one training.
        high: upper end of the interval; null with one training.
        num_seeds: number of trainings.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    num_seeds: int


class PointRow(Record):
    """One point of training, over samples and seeds; errors are means over samples, intervals over seeds.

    Attributes:
        step: number of steps.
        loss: mean over the training data; null where there is none.
        accuracy: on the test data, 0 to 1; null without such data.
        attack_rmse: least RMSE of the attacks, in data units; null where none ran.
        outsider_rmse: posterior error of an attacker who knows no other sample, in data units; null where there is
            none.
        informed_rmse: posterior error of an attacker who knows all others, in data units; null where samples leave
            alone.
        relative_rmse: the deciding attacker's at noise relative to the gradient's norm, in data units; null where there
            is none.
    """

    step: int
    loss: SeedMean | None = None
    accuracy: SeedMean | None = None
    attack_rmse: SeedMean | None = None
    outsider_rmse: SeedMean | None = None
    informed_rmse: SeedMean | None = None
    relative_rmse: SeedMean | None = None


class DefenseRow(Record):
    """One defence over its seeds.

    Errors are means over samples of each one's least error over the points of training: an attacker sees all uploads.

    Attributes:
        defense: the release's description, as the option ``--release`` takes it.
        noisy: whether it adds noise.
        num_seeds: number of trainings.
        num_finished: number of trainings that have all of their numbers.
        loss: mean over the training data at the end of training; null where no training came there.
        accuracy: on the test data at the end of training, 0 to 1; null where no training came there, or without such
            data.
        attack_rmse: least RMSE of the attacks, in data units; null where none ran.
        predicted_rmse: posterior error of the attacker by whom verdicts go, the certified lower end where it is an
            interval, in data units; null where there is none.
        outsider_rmse: the same of an attacker who knows no other sample; null where there is none.
        least_attack: attack RMSE of the most exposed sample in any seed, in data units; null where none ran.
        least_predicted: posterior error of the most exposed sample in any seed, in data units; null where there is
            none.
        num_unattacked: number of samples without an attack's error in some seed.
        num_unpredicted: number of samples without a posterior error in some seed.
        strongest: ids of the attacks that reached the least errors.
        on_front: whether no other defence is at least as good in both mean loss and mean least attack error, and better
            in one; null where the defence has no two numbers to compare.
        dominated_by: descriptions of the defences that are.
        points: one entry for each audited point of training.
        reasons: why trainings have no number, one sentence each.
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

    Attributes:
        first: description of the one.
        second: description of the other.
        attack_difference: mean over samples and seeds of the least attack RMSE of ``first`` less that of ``second``,
            paired, in data units; null where there is none.
        attack_low: lower end of its bootstrap interval; null with too few samples or seeds.
        attack_high: upper end of its bootstrap interval; null with too few samples or seeds.
        predicted_difference: the same difference of the posterior error, in data units; null where there is none.
        predicted_low: lower end of its bootstrap interval; null with too few samples or seeds.
        predicted_high: upper end of its bootstrap interval; null with too few samples or seeds.
        told_apart: whether the interval of the attacks' difference leaves out 0; null where there is none.
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
    """What ``riskaudit study defenses`` found: risk against utility by defence.

    ``noise_std`` is the reference noise, at which defences without noise of their own are predicted; attacks on them
    see none.

    Attributes:
        epochs: number of epochs of a training.
        num_steps: number of steps of a training.
        batch_size: number of samples in a step.
        learning_rate: learning rate of every step.
        num_training_samples: number of samples that are trained on.
        num_seeds: number of trainings with each defence.
        points: steps after which the network is audited, ascending.
        confidence: confidence of all intervals, 0 to 1.
        target_rmse: posterior error that a recommended defence has to force, in data units.
        tested: whether there are test data.
        rows: one entry for each defence in the order given, no defence first.
        equal_utility: one entry for each two defences of equal utility.
        runs: one entry for each defence and seed.
        recommended: a description that ``--release`` takes; null where the numbers support none.
        recommendation: what is recommended and why, in words.
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
