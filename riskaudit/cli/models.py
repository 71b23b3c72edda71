"""Options that several commands share besides the settings of the library."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic.dataclasses import dataclass

from riskaudit.cli.config import read_config
from riskaudit.report import FORMATS
from riskaudit.settings import ATTACKS, CHECKED, INPUTS, OUTPUT, POLICY, Settings, option

if TYPE_CHECKING:
    from riskaudit.inputs import Checkpoint, Samples


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DebugOptions(Settings):
    """What every command takes; `riskaudit.cli.app.run` reads it itself, as an option may be what is wrong."""

    debug: Annotated[bool, option("Print tracebacks of errors.", OUTPUT, recorded=False)] = False


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ConsoleOptions(DebugOptions):
    """What is printed."""

    quiet: Annotated[bool, option("Print nothing but errors.", OUTPUT, flags=("--quiet", "-q"), recorded=False)] = False


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LimitOption(Settings):
    """How many samples are read."""

    limit: Annotated[int | None, option("Audit at most this many samples.", INPUTS)] = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReadingOptions(Settings):
    """How data are read."""

    classes: Annotated[
        str | None,
        option(
            "The model's classes in the order of its outputs, where the data name them: a,b,c or a file, one a line.",
            INPUTS,
            file=True,
        ),
    ] = None
    scale: Annotated[
        float | None, option("Divide stored values by this (default: 255 for 8 bits, else 1).", INPUTS)
    ] = None
    split: Annotated[str | None, option("Which split of data that hold several: train, test...", INPUTS)] = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ModelOptions(Settings):
    """Which model the weights belong to."""

    arch: Annotated[str | None, option("Architecture (see riskaudit list) or file.py:factory.", INPUTS, file=True)] = (
        None
    )
    weights: Annotated[
        str | None,
        option(
            "Which of several sets of weights in the file: a prefix of their names, such as state_dict_ema.", INPUTS
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class IdOption(Settings):
    """Whether names from the data are shown."""

    plain_ids: Annotated[
        bool,
        option("Keep names of files and class folders as ids and class names; by default they are hashed.", OUTPUT),
    ] = False


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SubjectOptions(LimitOption, ReadingOptions, ModelOptions, IdOption, ConsoleOptions):
    """What is audited."""

    checkpoint: Annotated[
        str,
        option("Model weights: .pt, .pth, .safetensors or torch.export .pt2.", argument="CHECKPOINT", recorded=False),
    ]
    data: Annotated[
        str,
        option(
            "Samples: .npz, .pt, .safetensors, .csv, .parquet, idx-ubyte, a folder of images per class, or "
            "file.py:function.",
            INPUTS,
            recorded=False,
        ),
    ]
    mean: Annotated[
        tuple[float, ...] | None,
        option(
            "Input mean, one number or one per channel (0.49,0.48,0.45), subtracted inside the audited model.",
            INPUTS,
            commas=True,
        ),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        option("Input standard deviation, likewise; goes with --mean.", INPUTS, commas=True),
    ] = None
    config: Annotated[
        Path | None,
        option(
            "Options from a TOML file (default: riskaudit.toml here, or \\[tool.riskaudit] in pyproject.toml here).",
            INPUTS,
            callback=read_config,
            recorded=False,
        ),
    ] = None

    def load(self, loss: str, more: int = 0) -> tuple[Checkpoint, Samples]:
        """The model and the samples, ``more`` of them beyond the limit where there are as many."""
        from riskaudit.inputs import class_list, load_checkpoint, load_loss, load_samples

        model = load_checkpoint(self.checkpoint, arch=self.arch, weights=self.weights, mean=self.mean, std=self.std)
        # Where the weights don't tell the channels, several means do.
        channels = model.input_channels or (len(self.mean) if self.mean and len(self.mean) > 1 else None)
        samples = load_samples(
            self.data,
            channels=channels,
            limit=None if self.limit is None else self.limit + more,
            plain_ids=self.plain_ids,
            loss=load_loss(loss),
            classes=None if self.classes is None else class_list(self.classes),
            num_classes=model.num_classes,
            scale=self.scale,
            split=self.split,
        )
        return model, samples


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RenderingOptions(Settings):
    """What is rendered."""

    format: Annotated[
        tuple[str, ...],
        option(
            "Repeatable (default: html, pdf, json).",
            OUTPUT,
            choices={name: name for name in FORMATS},
            recorded=False,
        ),
    ] = ("html", "pdf", "json")
    baseline: Annotated[
        Path | None, option("Earlier audit.json to compare with in the report.", OUTPUT, recorded=False)
    ] = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReportOptions(RenderingOptions):
    """Where the report goes, and what it is held against."""

    policy: Annotated[
        Path | None,
        option("TOML file with limits: max_revealed, min_rmse, or a \\[policy] table of them.", POLICY, recorded=False),
    ] = None
    out: Annotated[
        Path | None,
        option(
            "Folder for the results (default: reports/CHECKPOINT-TIME).",
            OUTPUT,
            recorded=False,
            written=True,
            aliases=("log",),
        ),
    ] = None
    show_samples: Annotated[bool, option("Put the private images into the report, which says so.", OUTPUT)] = False

    def folder(self, checkpoint: str) -> Path:
        """Where the results go."""
        return self.out or Path("reports") / f"{Path(checkpoint).stem}-{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ResumeOptions(Settings):
    """Whether finished trials are taken over."""

    resume: Annotated[
        bool,
        option("Go on with an interrupted run that had the same --out.", ATTACKS, recorded=False),
    ] = False


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TrialOptions(ResumeOptions):
    """At what noise attacks run."""

    noise_stds: Annotated[
        tuple[float, ...],
        option(
            "Std of Gaussian noise instead of the release's own; repeatable; 0 is undefended.",
            ATTACKS,
            flags=("--noise-std",),
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyOptions(ResumeOptions):
    """How a study is run, and where its section goes."""

    attacks: Annotated[bool, option("Check the study's predictions by attacks, which takes longer.", ATTACKS)] = False
    attack_steps: Annotated[int | None, option("Steps of every attack (default: each's own).", ATTACKS)] = None
    add_to: Annotated[
        Path | None,
        option(
            "Earlier audit.json of the same checkpoint and data whose studies are kept beside the new one.",
            OUTPUT,
            file=True,
            written=True,
        ),
    ] = None
