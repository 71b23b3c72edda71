"""The attack interface: an observation in, a reconstruction out, all samples of a batch at once.

An `Observation` is all that an attacker has: the noisy release and public knowledge. It doesn't hold the
input, so no attack can read it; only metrics, which attacks never see, compare with the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from riskaudit.errors import SettingsError
from riskaudit.jacobian import Jacobian, JacobianFactory
from riskaudit.linalg import Deadline
from riskaudit.priors import BoundPrior, Prior, in_uploads
from riskaudit.release import Batch, Release
from riskaudit.results import AttackInfo, Status
from riskaudit.tables import TableEncoding

# Of the short run that tells how long a whole one takes.
PROBED_STEPS = 2
# Share of its steps after which a search that stagnates may end.
EARLIEST_END = 1 / 8


@dataclass(frozen=True, eq=False)
class PublicTexts:
    """What is public of embedded texts.

    Attributes:
        lengths: tokens of each text, [B n] int64; padding, which is exactly zero, comes after them.
        vocabulary: what each token is embedded as, [V, E].
    """

    lengths: Tensor
    vocabulary: Tensor

    def without_padding(self, embedded: Tensor) -> Tensor:
        """Embedded texts [B n, T, E] with zeros beyond each text's end."""
        places = torch.arange(embedded.shape[1], device=embedded.device)
        real = places < self.lengths.to(embedded.device)[:, None]
        return embedded * real[..., None].to(embedded)


@dataclass(frozen=True, eq=False)
class Observation:
    """What the attacker knows of B uploads, each of n samples.

    Attributes:
        released: what the server received of each upload, [B, P'].
        jacobian: makes J of the release at any guess; its ``release`` is the victim's own: model, loss, pipeline
            and noise law are public.
        input_shape: *S of one input.
        prior: what is known of the inputs beforehand.
        targets: labels [B n, ...]; None where the attack has to recover them.
        input_range: least and greatest value of an input coordinate, where known.
        batch_norm_statistics: whether the statistics of batch-norm layers are those of the victim's data.
        upload_size: n; 1 in a per-sample release.
        layer_statistics: mean and variance, [B, C] each, of what enters a batch-norm layer in every upload, by the
            layer's name, where the attacker has them from elsewhere than the model; None where not.
        deadline: whether the time that attacks may take is over; None for as long as they take.
        numbers: of the uploads, which steps that are drawn anew for each are drawn by; the server sees which entries
            they removed. None where nothing is.
        encoding: of a table, which inputs belong to which column, as the server that sent the model knows; None for
            other inputs.
        texts: of embedded texts, how long each is and the vocabulary; None for other inputs.
    """

    released: Tensor
    jacobian: JacobianFactory
    input_shape: tuple[int, ...]
    prior: Prior
    targets: Tensor | None
    input_range: tuple[float, float] | None = None
    batch_norm_statistics: bool = True
    upload_size: int = 1
    layer_statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None
    deadline: Deadline | None = None
    numbers: tuple[int, ...] | None = None
    encoding: TableEncoding | None = None
    texts: PublicTexts | None = None

    def __len__(self) -> int:
        return len(self.released)

    @property
    def release(self) -> Release:
        """The victim's release."""
        return self.jacobian.release

    def select(self, indices: list[int]) -> Observation:
        """Some of the uploads, in the order given; one may occur several times."""
        targets = self.targets
        if targets is not None:
            targets = targets.reshape(-1, self.upload_size, *targets.shape[1:])[indices].flatten(0, 1)
        statistics = self.layer_statistics
        if statistics is not None:
            statistics = {name: (mean[indices], var[indices]) for name, (mean, var) in statistics.items()}
        numbers = None if self.numbers is None else tuple(self.numbers[index] for index in indices)
        texts = self.texts
        if texts is not None:
            texts = replace(texts, lengths=texts.lengths.reshape(-1, self.upload_size)[indices].flatten())
        return replace(
            self,
            released=self.released[indices],
            targets=targets,
            layer_statistics=statistics,
            numbers=numbers,
            texts=texts,
        )

    def with_targets(self, targets: Tensor) -> Observation:
        """The same with labels that the attack recovered."""
        return replace(self, targets=targets)

    def bound_prior(self) -> BoundPrior:
        """The prior at the uploads, [B, n d]; the targets must be known."""
        return in_uploads(self.sample_prior(), self.upload_size)

    def sample_prior(self) -> BoundPrior:
        """The prior at the samples, [B n, d]; the targets must be known."""
        like = self.released.new_empty(len(self) * self.upload_size, self.dimension)
        return self.prior.bind(self.known_targets, like, None if self.texts is None else self.texts.lengths)

    @property
    def known_targets(self) -> Tensor:
        """The labels [B n, ...].

        Raises:
            SettingsError: they are neither known nor recovered.
        """
        if self.targets is None:
            raise SettingsError("expected the labels to be known or recovered; choose an attack that recovers them")
        return self.targets

    @property
    def dimension(self) -> int:
        """Number of coordinates d of one input."""
        return int(torch.Size(self.input_shape).numel())

    @property
    def upload_dimension(self) -> int:
        """Number of coordinates n d of an upload's inputs."""
        return self.upload_size * self.dimension

    def images(self, points: Tensor) -> Tensor:
        """Guesses [R, n d] at uploads as inputs, [R n, *S]; of texts, without anything beyond their ends."""
        inputs = points.reshape(-1, *self.input_shape)
        return inputs if self.texts is None else self.texts.without_padding(inputs)

    def batch(self, guess: Tensor) -> Batch:
        """Guesses [B, n d] or [B n, *S] as uploads of the release."""
        lengths = None if self.texts is None else self.texts.lengths
        return Batch(self.images(guess), self.known_targets, self.upload_size, self.numbers, lengths=lengths)

    def at(self, guess: Tensor) -> Jacobian:
        """J of the release at guesses as `batch` takes them.

        Raises:
            OutOfTimeError: the deadline is over.
        """
        self.check_time()
        return self.jacobian(self.batch(guess))

    def check_time(self) -> None:
        """Refuse to go on after the deadline; searches ask before every evaluation and every product.

        Raises:
            OutOfTimeError: it is over.
        """
        if self.deadline is not None and self.deadline():
            raise OutOfTimeError


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack made of an observation.

    Attributes:
        inputs: the best guess by the attacker's own objective, [B n, *S].
        objective: the attack's objective there, [B], float64; infinite where it failed.
        status: "converged" where the attack's own stopping rule was met, "not_converged" where its steps were
            used up, "failed" where nothing finite came out.
        steps: optimisation steps of the restart that was kept, [B].
        restarts: how many starts there were.
        seconds: wall time for the whole batch.
        targets: the labels that were used, known or recovered, [B n, ...].
        confidence: how sure the attacker is of each sample, from 0 to 1, [B n], float64; None where the attack doesn't
            say.
    """

    inputs: Tensor
    objective: Tensor
    status: tuple[Status, ...]
    steps: Tensor
    restarts: int
    seconds: float
    targets: Tensor
    confidence: Tensor | None = None

    def improved_by(self, other: Reconstruction, uploads: list[int]) -> Reconstruction:
        """With another run on some uploads, in the order given, wherever its objective is smaller."""
        inputs, objective, steps, targets = (
            each.clone() for each in (self.inputs, self.objective, self.steps, self.targets)
        )
        status, size = list(self.status), len(self.inputs) // len(self.objective)
        for place, upload in enumerate(uploads):
            # Not "not smaller": a value that isn't a number is no improvement.
            if bool(other.objective[place] < objective[upload]):
                own, others = (slice(size * number, size * (number + 1)) for number in (upload, place))
                inputs[own], targets[own] = other.inputs[others], other.targets[others]
                objective[upload], steps[upload] = other.objective[place], other.steps[place]
                status[upload] = other.status[place]
        return Reconstruction(
            inputs=inputs,
            objective=objective,
            status=tuple(status),
            steps=steps,
            restarts=max(self.restarts, other.restarts),
            seconds=self.seconds + other.seconds,
            targets=targets,
        )


@dataclass(frozen=True)
class Effort:
    """How much work an attack is, in units that a short run of it is timed in.

    Attributes:
        probe: the attack cut short.
        done: units that the short run takes.
        low: units of a run whose search ends early.
        high: units of one whose search takes all its steps, without what is spent on samples that get stuck.
        most: units at most.
    """

    probe: Attack
    done: float
    low: float
    high: float
    most: float


class Attack(ABC):
    """Reconstructs inputs from an observation.

    Implementations are frozen dataclasses whose fields are the attack's hyper-parameters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    matching: ClassVar[Literal["l2", "cosine"] | None] = None
    """The distance of releases that the attack minimises, where a proxy is made for it (Hong et al., AAAI 2024)."""
    oracle_start: ClassVar[bool] = False
    """Whether the attack is started at the truth, which no attacker has: evidence on the theory, not an attack."""
    grid: ClassVar[tuple[Mapping[str, object], ...]] = ({},)
    """Hyper-parameters worth trying, each to be put in by `dataclasses.replace`; the first ones are the defaults."""

    @classmethod
    def info(cls) -> AttackInfo:
        """What audit.json says of this attack."""
        return AttackInfo(
            id=cls.name,
            title=cls.title,
            source=cls.source,
            summary=cls.summary,
            matching=cls.matching,
            oracle_start=cls.oracle_start,
        )

    @property
    def effort(self) -> Effort:
        """By default in steps, of which searches that stagnate leave out most; all at once where there are none."""
        steps: int | None = getattr(self, "steps", None)
        if steps is None:
            return Effort(self, 1, 1, 1, 1)
        done = min(PROBED_STEPS, steps)
        # Beside the steps, the start is evaluated.
        return Effort(self._with(steps=done), done + 1, 1 + EARLIEST_END * steps, steps + 1, steps + 1)

    @property
    def first(self) -> Attack:
        """The attack without what it does for samples whose first start got stuck: with one start each."""
        return self._with(restarts=1)

    def _with(self, **changes: object) -> Attack:
        known = {field.name for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{name: value for name, value in changes.items() if name in known})  # type: ignore[type-var]

    @abstractmethod
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct every sample.

        Args:
            observation: what the attacker knows.
            generator: on the CPU, of every random draw.

        Raises:
            AttackNotApplicable: the attack can't be run on this model or release at all.
            OutOfTimeError: the observation's deadline came before the end.
        """


class OutOfTimeError(Exception):
    """The time that attacks may take is over; what was begun says nothing."""


class AttackNotApplicable(Exception):  # noqa: N818  (a finding, not an error)
    """The attack can't be run on this model or release; the message says why."""


ATTACKS: dict[str, type[Attack]] = {}


def register(attack: type[Attack]) -> type[Attack]:
    """Class decorator: make an attack known to ``attack``."""
    if attack.name in ATTACKS:
        raise SettingsError(f"the attack {attack.name!r} is registered twice")
    ATTACKS[attack.name] = attack
    return attack
