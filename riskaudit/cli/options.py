"""Options that commands share, with their help texts."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from riskaudit.cli.config import read_config
from riskaudit.report import FORMATS

Labels = Enum("Labels", {"known": "known", "recovered": "recovered"}, type=str)
Format = Enum("Format", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]

INPUTS, RELEASE, PRIOR, SOLVERS, POLICY, OUTPUT, ATTACKS = (
    "Inputs",
    "Release",
    "Prior and verdicts",
    "Solvers",
    "Policy",
    "Output",
    "Attacks",
)

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Model weights: .pt, .pth, .safetensors or torch.export .pt2.")
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="Samples: .npz, .pt, .safetensors, .csv, .parquet, idx-ubyte, a folder of images per class, or "
        "file.py:function.",
        rich_help_panel=INPUTS,
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option("--arch", help="Architecture (see riskaudit list) or file.py:factory.", rich_help_panel=INPUTS),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Which of several sets of weights in the file: a prefix of their names, such as state_dict_ema.",
        rich_help_panel=INPUTS,
    ),
]
LossOption = Annotated[
    str,
    typer.Option("--loss", help="cross-entropy, bce, mse, or file.py:function.", rich_help_panel=INPUTS),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="Input mean, one number or one per channel (0.49,0.48,0.45), subtracted inside the audited model.",
        rich_help_panel=INPUTS,
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", help="Input standard deviation, likewise; goes with --mean.", rich_help_panel=INPUTS),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Audit at most this many samples.", rich_help_panel=INPUTS)
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="The model's classes in the order of its outputs, where the data name them: a,b,c or a file, one a line.",
        rich_help_panel=INPUTS,
    ),
]
ScaleOption = Annotated[
    float | None,
    typer.Option(
        "--scale", help="Divide stored values by this (default: 255 for 8 bits, else 1).", rich_help_panel=INPUTS
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Which split of data that hold several: train, test...", rich_help_panel=INPUTS),
]
ReleaseOption = Annotated[
    str,
    typer.Option(
        "--release",
        help='What leaves the client, left to right, e.g. "clip:1.0,gaussian:0.01" (see riskaudit list).',
        rich_help_panel=RELEASE,
    ),
]
ReferenceNoiseOption = Annotated[
    float,
    typer.Option(
        "--reference-noise", help="Noise std at which an undefended release is ranked.", rich_help_panel=RELEASE
    ),
]
PriorOption = Annotated[
    str,
    typer.Option(
        "--prior",
        help="What the attacker knows of inputs: isotropic, data or class (fitted to the audited data), or a FILE "
        "that riskaudit prior fit wrote.",
        rich_help_panel=PRIOR,
    ),
]
PriorMeanOption = Annotated[
    float | None,
    typer.Option(
        "--prior-mean",
        help="Isotropic prior: mean of one input coordinate (default: the data's).",
        rich_help_panel=PRIOR,
    ),
]
PriorStdOption = Annotated[
    float | None,
    typer.Option(
        "--prior-std",
        help="Isotropic prior: standard deviation likewise (default: the data's).",
        rich_help_panel=PRIOR,
    ),
]
TargetRmseOption = Annotated[
    float | None,
    typer.Option(
        "--target-rmse",
        help="Error that enough noise should force (default: half the prior's std).",
        rich_help_panel=PRIOR,
    ),
]
ToleranceOption = Annotated[
    list[float] | None,
    typer.Option(
        "--tolerance",
        help="RMSE within which a reconstruction counts as a success; repeatable (default: 0.05, 0.1, 0.2).",
        rich_help_panel=PRIOR,
    ),
]
HighOption = Annotated[
    float, typer.Option("--high-above", help='Verdict "high" above this revealed fraction.', rich_help_panel=PRIOR)
]
MediumOption = Annotated[
    float,
    typer.Option("--medium-above", help='Verdict "medium" from this revealed fraction on.', rich_help_panel=PRIOR),
]
SolverOption = Annotated[str, typer.Option("--solver", help="auto, dense, lanczos or power.", rich_help_panel=SOLVERS)]
InverseOption = Annotated[
    str, typer.Option("--inverse", help="auto, dense, cg, neumann or least-squares.", rich_help_panel=SOLVERS)
]
SolverToleranceOption = Annotated[
    float, typer.Option("--solver-tolerance", help="Relative error at which a solver stops.", rich_help_panel=SOLVERS)
]
MaxMatvecsOption = Annotated[
    int | None,
    typer.Option(
        "--max-matvecs",
        help="Products per sample and iteration (default: 50, or 1000 with a named solver or a precision).",
        rich_help_panel=SOLVERS,
    ),
]
ConfidenceOption = Annotated[
    float,
    typer.Option(
        "--confidence", help="With which certified ends hold, for all samples together.", rich_help_panel=SOLVERS
    ),
]
PrecisionOption = Annotated[
    float | None,
    typer.Option(
        "--precision",
        help="Relative width that certified intervals should have (default: 0.2 where that is cheap).",
        rich_help_panel=SOLVERS,
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget",
        help="Seconds for all samples; what is not narrowed by then keeps its honest interval.",
        rich_help_panel=SOLVERS,
    ),
]
ProxiesOption = Annotated[
    str | None,
    typer.Option(
        "--proxies",
        help="Only these, separated by commas (see riskaudit list; default: all).",
        rich_help_panel=SOLVERS,
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32 or float64.", rich_help_panel=SOLVERS)]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:NUMBER.", rich_help_panel=SOLVERS)]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", help="Samples in memory at once, at most (default: what fits).", rich_help_panel=SOLVERS
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random draw.", rich_help_panel=SOLVERS)]
MaxRevealedOption = Annotated[
    float | None,
    typer.Option(
        "--max-revealed", help="Exit with 1 if a sample's revealed fraction is larger.", rich_help_panel=POLICY
    ),
]
MinRmseOption = Annotated[
    float | None,
    typer.Option("--min-rmse", help="Exit with 1 if a sample's posterior error is smaller.", rich_help_panel=POLICY),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="TOML file with limits: max_revealed, min_rmse, or a \\[policy] table of them.",
        rich_help_panel=POLICY,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the results (default: reports/CHECKPOINT-TIME).", rich_help_panel=OUTPUT),
]
FormatOption = Annotated[
    list[Format] | None, typer.Option("--format", help="Repeatable (default: html, pdf, json).", rich_help_panel=OUTPUT)
]
BaselineOption = Annotated[
    Path | None,
    typer.Option("--baseline", help="Earlier audit.json to compare with in the report.", rich_help_panel=OUTPUT),
]
ShowSamplesOption = Annotated[
    bool,
    typer.Option(
        "--show-samples", help="Put the private images into the report, which says so.", rich_help_panel=OUTPUT
    ),
]
PlainIdsOption = Annotated[
    bool,
    typer.Option(
        "--plain-ids",
        help="Keep names of files and class folders as ids and class names; by default they are hashed.",
        rich_help_panel=OUTPUT,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print tracebacks of errors.", rich_help_panel=OUTPUT)]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=read_config,
        is_eager=True,
        help="Options from a TOML file (default: riskaudit.toml here, or \\[tool.riskaudit] in pyproject.toml here).",
        rich_help_panel=INPUTS,
    ),
]


CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="File of riskaudit calibrate for this model, release, noise and prior: intervals with stated coverage.",
        rich_help_panel=PRIOR,
    ),
]
AttackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        help="Attack to run (see riskaudit list); repeatable (default: gauss-newton, inverting-gradients).",
        rich_help_panel=ATTACKS,
    ),
]
NoiseStdOption = Annotated[
    list[float] | None,
    typer.Option(
        "--noise-std",
        help="Std of Gaussian noise instead of the release's own; repeatable; 0 is undefended.",
        rich_help_panel=ATTACKS,
    ),
]
AttackStepsOption = Annotated[
    int | None,
    typer.Option("--attack-steps", help="Steps of every attack (default: each's own).", rich_help_panel=ATTACKS),
]
RestartsOption = Annotated[
    int | None,
    typer.Option("--restarts", help="Starts per sample (default: each attack's own).", rich_help_panel=ATTACKS),
]
LabelsOption = Annotated[
    Labels,
    typer.Option("--labels", help="Whether attacks know the labels or recover them.", rich_help_panel=ATTACKS),
]
TuneOption = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Choose each attack's hyper-parameters on the samples that follow those of --limit.",
        rich_help_panel=ATTACKS,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with an interrupted run that had the same --out.", rich_help_panel=ATTACKS),
]


WithAttacksOption = Annotated[
    bool,
    typer.Option(
        "--attacks", help="Check the study's predictions by attacks, which takes longer.", rich_help_panel=ATTACKS
    ),
]
AddToOption = Annotated[
    Path | None,
    typer.Option(
        "--add-to",
        help="Earlier audit.json of the same checkpoint and data whose studies are kept beside the new one.",
        rich_help_panel=OUTPUT,
    ),
]


def formats_of(chosen: list[Format] | None) -> list[str]:
    """Format names, the default where none was chosen."""
    return [str(name.value) for name in chosen] if chosen else ["html", "pdf", "json"]


def tolerances_of(chosen: list[float] | None) -> tuple[float, ...]:
    """Tolerances ascending and without repeats, the default where none was chosen."""
    return tuple(sorted(set(chosen))) if chosen else (0.05, 0.1, 0.2)


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def numbers_of(text: str | None, name: str) -> list[float] | None:
    """Numbers separated by commas.

    Raises:
        typer.BadParameter: something else.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected {name} as numbers separated by commas, found {text!r}") from None
