"""Options that several commands share, as dataclasses: a field is an option, its type says how it is given.

`takes_options` turns such groups into a command's signature, so that each option is written down once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from riskaudit.cli import options as opt

if TYPE_CHECKING:
    from riskaudit.audit import AuditSettings
    from riskaudit.inputs import Checkpoint, Samples
    from riskaudit.policy import Policy
    from riskaudit.studies.attacking import AttackSettings


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """What is audited, and how the numbers are computed."""

    checkpoint: opt.CheckpointArgument
    data: opt.DataOption
    arch: opt.ArchOption = None
    weights: opt.WeightsOption = None
    loss: opt.LossOption = "cross-entropy"
    mean: opt.MeanOption = None
    std: opt.StdOption = None
    limit: opt.LimitOption = None
    classes: opt.ClassesOption = None
    scale: opt.ScaleOption = None
    split: opt.SplitOption = None
    release: opt.ReleaseOption = "gradient"
    reference_noise: opt.ReferenceNoiseOption = 1e-3
    prior: opt.PriorOption = "isotropic"
    prior_mean: opt.PriorMeanOption = None
    prior_std: opt.PriorStdOption = None
    solver: opt.SolverOption = "auto"
    inverse: opt.InverseOption = "auto"
    solver_tolerance: opt.SolverToleranceOption = 1e-6
    max_matvecs: opt.MaxMatvecsOption = None
    precision: opt.PrecisionOption = None
    confidence: opt.ConfidenceOption = 0.99
    dtype: opt.DtypeOption = "float64"
    device: opt.DeviceOption = "auto"
    batch_size: opt.BatchSizeOption = None
    seed: opt.SeedOption = 0
    plain_ids: opt.PlainIdsOption = False
    config: opt.ConfigOption = None
    quiet: opt.QuietOption = False
    debug: opt.DebugOption = False

    def settings(self, **more: Any) -> AuditSettings:
        """Settings of an audit with these options, and others."""
        from riskaudit.audit import AuditSettings

        shared = {field.name for field in fields(self)} & set(AuditSettings.__dataclass_fields__)
        return AuditSettings(**{name: getattr(self, name) for name in shared}, **more)

    def load(self, more: int = 0) -> tuple[Checkpoint, Samples]:
        """The model and the samples, ``more`` of them beyond the limit where there are as many."""
        from riskaudit.inputs import class_list, load_checkpoint, load_loss, load_samples

        means = opt.numbers_of(self.mean, "--mean")
        deviations = opt.numbers_of(self.std, "--std")
        model = load_checkpoint(self.checkpoint, arch=self.arch, weights=self.weights, mean=means, std=deviations)
        # Where the weights don't tell the channels, several means do.
        channels = model.input_channels or (len(means) if means and len(means) > 1 else None)
        limit = None if self.limit is None else self.limit + more
        samples = load_samples(
            self.data, channels=channels, limit=limit, plain_ids=self.plain_ids, loss=load_loss(self.loss),
            classes=None if self.classes is None else class_list(self.classes), num_classes=model.num_classes,
            scale=self.scale, split=self.split,
        )  # fmt: skip
        return model, samples


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the report says of the numbers, and where it goes."""

    target_rmse: opt.TargetRmseOption = None
    tolerance: opt.ToleranceOption = None
    high: opt.HighOption = 0.5
    medium: opt.MediumOption = 0.1
    calibration: opt.CalibrationOption = None
    max_revealed: opt.MaxRevealedOption = None
    min_rmse: opt.MinRmseOption = None
    policy: opt.PolicyOption = None
    budget: opt.BudgetOption = None
    proxies: opt.ProxiesOption = None
    out: opt.OutOption = None
    format: opt.FormatOption = None
    baseline: opt.BaselineOption = None
    show_samples: opt.ShowSamplesOption = False

    def folder(self, checkpoint: str) -> Path:
        """Where the results go."""
        return self.out or Path("reports") / f"{Path(checkpoint).stem}-{datetime.now():%Y%m%d-%H%M%S}"

    def settings(self, policy: Policy) -> dict[str, Any]:
        """Fields of the audit's settings."""
        return {
            "target_rmse": self.target_rmse,
            "tolerances": opt.tolerances_of(self.tolerance),
            "high": self.high,
            "medium": self.medium,
            "calibration": None if self.calibration is None else str(self.calibration),
            "max_revealed": policy.max_revealed,
            "min_rmse": policy.min_rmse,
            "budget": self.budget,
            "proxies": opt.names_of(self.proxies),
        }


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Which attacks run, at what noise, and what they know."""

    attack: opt.AttackOption = None
    noise_std: opt.NoiseStdOption = None
    attack_steps: opt.AttackStepsOption = None
    restarts: opt.RestartsOption = None
    labels: opt.LabelsOption = opt.Labels.known
    tune: opt.TuneOption = False
    resume: opt.ResumeOption = False

    def settings(self) -> AttackSettings:
        """Settings of the attacks."""
        from riskaudit.studies.attacking import AttackSettings

        named = {} if self.attack is None else {"names": tuple(self.attack)}
        return AttackSettings(
            **named,
            steps=self.attack_steps,
            restarts=self.restarts,
            labels_known=self.labels is opt.Labels.known,
            tune=self.tune,
        )


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is run, and where its section goes."""

    attacks: opt.WithAttacksOption = False
    attack_steps: opt.AttackStepsOption = None
    resume: opt.ResumeOption = False
    add_to: opt.AddToOption = None


def takes_options(*groups: type[Any]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate ``command(ctx, *groups, **own options)`` so that it takes every option of the groups."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        context, own = own[0], own[1 + len(groups) :]

        def run(ctx: typer.Context, **values: Any) -> int:
            made = [group(**{field.name: values.pop(field.name) for field in fields(group)}) for group in groups]
            return command(ctx, *made, **values)

        parameters = [context, *own, *(parameter for group in groups for parameter in _parameters(group))]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
