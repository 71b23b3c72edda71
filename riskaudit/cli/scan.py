"""``riskaudit scan``: the audit of one checkpoint on a sample of data."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from riskaudit.cli import options as opt
from riskaudit.cli.config import policy_table
from riskaudit.cli.console import print_summary, progress
from riskaudit.errors import SettingsError
from riskaudit.files import check_output_folder, write_folder
from riskaudit.report import FILE_NAMES, render
from riskaudit.results import AuditResult, PolicyOutcome

EXIT_EXCEEDED = 1
# Options that don't change what is computed, or name places on this machine.
NOT_RECORDED = {"checkpoint", "data", "out", "quiet", "debug", "config", "baseline", "format", "policy"}


def scan(
    ctx: typer.Context,
    checkpoint: opt.CheckpointArgument,
    data: opt.DataOption,
    arch: opt.ArchOption = None,
    loss: opt.LossOption = "cross-entropy",
    mean: opt.MeanOption = None,
    std: opt.StdOption = None,
    limit: opt.LimitOption = None,
    release: opt.ReleaseOption = "gradient",
    reference_noise: opt.ReferenceNoiseOption = 1e-3,
    prior: opt.PriorOption = "isotropic",
    prior_mean: opt.PriorMeanOption = None,
    prior_std: opt.PriorStdOption = None,
    target_rmse: opt.TargetRmseOption = None,
    tolerance: opt.ToleranceOption = None,
    high: opt.HighOption = 0.5,
    medium: opt.MediumOption = 0.1,
    max_revealed: opt.MaxRevealedOption = None,
    min_rmse: opt.MinRmseOption = None,
    policy: opt.PolicyOption = None,
    solver: opt.SolverOption = "auto",
    inverse: opt.InverseOption = "auto",
    solver_tolerance: opt.SolverToleranceOption = 1e-6,
    max_matvecs: opt.MaxMatvecsOption = None,
    precision: opt.PrecisionOption = None,
    budget: opt.BudgetOption = None,
    proxies: opt.ProxiesOption = None,
    confidence: opt.ConfidenceOption = 0.99,
    dtype: opt.DtypeOption = "float64",
    device: opt.DeviceOption = "auto",
    batch_size: opt.BatchSizeOption = None,
    seed: opt.SeedOption = 0,
    out: opt.OutOption = None,
    format: opt.FormatOption = None,
    baseline: opt.BaselineOption = None,
    show_samples: opt.ShowSamplesOption = False,
    plain_ids: opt.PlainIdsOption = False,
    config: opt.ConfigOption = None,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> int:
    """Audit what the gradients of a checkpoint on some samples give away.

    Exit codes: 0 audited, within policy or no policy given; 1 a policy limit was exceeded; 2 could not audit.
    """
    folder = out or Path("reports") / f"{Path(checkpoint).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    check_output_folder(folder, FILE_NAMES.values())
    earlier = None if baseline is None else AuditResult.load(baseline)
    limits = _Limits(max_revealed, min_rmse, policy, config)

    # Everything above is checked before torch is loaded.
    from riskaudit.auditing import AuditSettings, audit
    from riskaudit.inputs import load_checkpoint, load_loss, load_samples

    settings = AuditSettings(
        loss=loss, release=release, reference_noise=reference_noise, prior=prior, prior_mean=prior_mean,
        prior_std=prior_std, target_rmse=target_rmse, tolerances=opt.tolerances_of(tolerance),
        max_revealed=limits.policy.max_revealed, min_rmse=limits.policy.min_rmse, high=high,
        medium=medium, solver=solver, inverse=inverse, solver_tolerance=solver_tolerance, max_matvecs=max_matvecs,
        precision=precision, budget=budget, proxies=opt.names_of(proxies),
        confidence=confidence, dtype=dtype, device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    means = opt.numbers_of(mean, "--mean")
    model = load_checkpoint(checkpoint, arch=arch, mean=means, std=opt.numbers_of(std, "--std"))
    # Where the weights don't tell the channels, several means do.
    channels = model.input_channels or (len(means) if means and len(means) > 1 else None)
    samples = load_samples(data, channels=channels, limit=limit, plain_ids=plain_ids, loss=load_loss(loss))
    with progress(quiet) as update:
        result = audit(
            model, samples, settings, show_samples=show_samples, command=_command(ctx, checkpoint, data),
            progress=update,
        )  # fmt: skip
    result = result.model_copy(update={"policy": limits.decide(result)})
    files = render(result, opt.formats_of(format), baseline=earlier)
    write_folder(folder, files)
    if not quiet:
        print_summary(result, [folder / name for name in files])
    return EXIT_EXCEEDED if result.policy is not None and result.policy.decision == "block" else 0


class _Limits:
    """The policy's limits and where they came from, read before the audit begins.

    Limit by limit, an option on the command line wins over ``--policy``, and that over the policy table of
    the configuration file.
    """

    def __init__(
        self, max_revealed: float | None, min_rmse: float | None, policy: Path | None, config: Path | None
    ) -> None:
        from riskaudit.guard import Policy

        limits: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for file in (config, policy):
            table = policy_table(file, required=file is policy) if file is not None else None
            if file is not None and table:
                limits |= table
                sources |= dict.fromkeys(table, file.name)
        for name, value in (("max_revealed", max_revealed), ("min_rmse", min_rmse)):
            if value is not None:
                limits[name] = value
                sources[name] = f"--{name.replace('_', '-')}"
        self.policy = Policy.from_mapping(limits)
        self.source = ", ".join(dict.fromkeys(sources.values()))
        if policy is not None and not self.policy.limits:
            raise SettingsError(f"expected policy limits in {policy}, found none")

    def decide(self, result: AuditResult) -> PolicyOutcome | None:
        """The policy's outcome, None where no limit was given."""
        return self.policy.decide(result, self.source) if self.policy.limits else None


def _command(ctx: typer.Context, checkpoint: str, data: str) -> str:
    """The command that reproduces this audit, without the folders of its files."""
    words = ["riskaudit", "scan", _file_name(checkpoint), "--data", _file_name(data)]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        value: Any = ctx.params.get(name)
        if name in NOT_RECORDED or source is None or source.name == "DEFAULT" or value in (None, False):
            continue
        option = next(option for option in parameter.opts if option.startswith("--"))
        if value is True:
            words.append(option)
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [option, _file_name(str(each)) if name in ("arch", "loss", "prior") else str(each)]
    return shlex.join(words)


def _file_name(path: str) -> str:
    """A path, or the path in ``file.py:name``, without its folder."""
    return Path(path).name
