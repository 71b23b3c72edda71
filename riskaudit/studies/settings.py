"""What studies are given. Nothing here loads torch, so that the command line can show it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from riskaudit.files import find_samples
from riskaudit.settings import (
    ATTACKS,
    CHECKED,
    INPUTS,
    RELEASE,
    SOLVERS,
    Count,
    Positive,
    Probability,
    Settings,
    Share,
    one_of,
    option,
)

if TYPE_CHECKING:
    from riskaudit.attacks import Attack


SearchEffort: TypeAlias = Literal["adaptive", "full"]

# Where none is named; `riskaudit.studies.adaptive` adds those that are made for the defence at hand.
DEFAULT_ATTACKS = ("gauss-newton", "inverting-gradients")


@dataclass(frozen=True, config=CHECKED)
class AttackSettings(Settings):
    """Which attacks run, and what they are given."""

    names: Annotated[tuple[str, ...], Field(min_length=1)] | None = option(
        None,
        "Attack to run (see riskaudit list); repeatable (default: gauss-newton, inverting-gradients, and those made "
        "for the defence at hand).",
        ATTACKS,
        flags=("--attack",),
    )
    steps: Count | None = option(
        None, "Steps of every attack (default: each's own).", ATTACKS, flags=("--attack-steps",)
    )
    restarts: Count | None = option(None, "Starts per sample (default: each attack's own).", ATTACKS)
    labels_known: bool = option(
        True,
        "Whether attacks know the labels or recover them.",
        ATTACKS,
        flags=("--labels",),
        choices={"known": True, "recovered": False},
    )
    effort: SearchEffort | None = option(
        None,
        "Further starts of samples whose first one got stuck: adaptive, for those whose undefended gradient the first "
        "start inverts; full, for all (default: full to calibrate, where weak attacks would pass for safety, else "
        "adaptive).",
        ATTACKS,
    )
    tune: bool = option(
        False, "Choose each attack's hyper-parameters on the samples that follow the audited ones.", ATTACKS
    )

    @field_validator("names")
    @classmethod
    def _registered(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from riskaudit.attacks import ATTACKS as REGISTERED

        for name in names or ():
            one_of("names", name, REGISTERED)
        return names

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names, or those that always run where none is given."""
        return DEFAULT_ATTACKS if self.names is None else tuple(dict.fromkeys(self.names))

    def attacks(self) -> dict[str, Attack]:
        """The attacks with these steps and restarts."""
        from riskaudit.attacks import ATTACKS as REGISTERED

        changes = {name: value for name, value in (("steps", self.steps), ("restarts", self.restarts)) if value}
        return {name: with_fields(REGISTERED[name](), changes) for name in self.chosen}


def with_fields(attack: Attack, changes: dict[str, Any]) -> Attack:
    """The attack with other hyper-parameters; those that it doesn't have are left out."""
    names = {field.name for field in fields(attack)}  # type: ignore[arg-type]
    return replace(attack, **{name: value for name, value in changes.items() if name in names})  # type: ignore[type-var]


@dataclass(frozen=True, config=CHECKED)
class DirectionSettings(Settings):
    """What the study of directions looks at.

    By default the norm of every perturbation is sigma sqrt(d), what the audit's noise has within the range of J on
    average (the reference noise where there is none). ``attack_names`` check the predictions.
    """

    norm: Positive | None = option(
        None,
        "Norm of every perturbation (default: what the audit's noise has within the range of the Jacobian).",
        RELEASE,
    )
    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = option(
        (0.0, 0.1, 0.5, 0.9, 1.0),
        "Place in the spectrum of a direction to perturb, 0 the smallest eigenvalue, 1 the largest; repeatable "
        "(default: 0, 0.1, 0.5, 0.9, 1).",
        RELEASE,
        flags=("--quantile",),
    )
    prune_ratio: Probability = option(0.9, "Share of entries pruned, for pruning's direction.", RELEASE)
    attack_names: tuple[str, ...] = ("local", "dlg")
    shaping: bool = option(True, "Compare shapes of noise of equal power.", RELEASE, flags=("--shaping/--no-shaping",))


@dataclass(frozen=True, config=CHECKED)
class InitializationSettings(Settings):
    """How many networks the study of initializations makes."""

    seeds: Count = option(3, "Fresh networks per initialization.", SOLVERS)


@dataclass(frozen=True, config=CHECKED)
class DefenseSettings(Settings):
    """Which defences are compared, and how networks are trained with them."""

    defenses: Annotated[tuple[str, ...], Field(min_length=1)] = option(
        ...,
        'What leaves the client with a defence, as --release takes it: "prune:0.9", "clip:1,mean:8,gaussian:0.01"; '
        "repeatable.",
        RELEASE,
        flags=("--defense",),
    )
    train: str = option(..., "Samples to train on, read as --data is.", INPUTS, file=True, check=find_samples)
    test: str | None = option(
        None, "Samples whose classes the trained networks are tested on.", INPUTS, file=True, check=find_samples
    )
    train_limit: Count | None = option(None, "Train on at most this many samples.", INPUTS)
    epochs: Count = option(1, "Epochs of every training.", SOLVERS)
    seeds: Count = option(3, "Trainings with each defence; one gives no intervals.", SOLVERS)
    learning_rate: Positive = option(0.1, "Rate of plain SGD.", SOLVERS)
    training_batch: Count = option(32, "Samples of one step.", SOLVERS)
    points: tuple[int, ...] = option(
        (),
        "Steps after which networks are audited and attacked, besides the end, separated by commas (default: 0 and the "
        "middle).",
        SOLVERS,
        commas=True,
    )
    attack_names: Annotated[tuple[str, ...], Field(min_length=1)] = option(
        ("gauss-newton", "inverting-gradients"),
        "Attack to run (see riskaudit list); repeatable (default: gauss-newton, inverting-gradients).",
        ATTACKS,
        flags=("--attack",),
        aliases=("names",),
    )
    restarts: Count | None = option(None, "Starts per sample (default: each attack's own).", ATTACKS)
