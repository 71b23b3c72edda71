"""Options that several commands share besides the settings of the library."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from riskaudit.audit.subject import SourceOptions
from riskaudit.cli.config import read_config
from riskaudit.cli.console import working
from riskaudit.files import find_model
from riskaudit.report import FORMATS
from riskaudit.settings import ATTACKS, CHECKED, INPUTS, OUTPUT, POLICY, SOLVERS, Count, Settings, option

if TYPE_CHECKING:
    from riskaudit.inputs import Checkpoint, Samples


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ConsoleOptions(Settings):
    """What is printed."""

    quiet: bool = option(False, "Print nothing but errors.", OUTPUT, flags=("--quiet", "-q"), recorded=False)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SubjectOptions(SourceOptions, ConsoleOptions):
    """What is audited."""

    checkpoint: str = option(
        ...,
        "Model weights: .pt, .pth, .safetensors or torch.export .pt2.",
        argument="CHECKPOINT",
        recorded=False,
        check=find_model,
    )
    workers: Count = option(
        1, "Processes that the work is spread over; results don't depend on it.", SOLVERS, recorded=False
    )
    config: Path | None = option(
        None,
        "Options from a TOML file (default: riskaudit.toml here, or \\[tool.riskaudit] in pyproject.toml here).",
        INPUTS,
        callback=read_config,
        recorded=False,
    )

    def load(self, loss: str, more: int = 0) -> tuple[Checkpoint, Samples]:
        """The model and the samples, ``more`` of them beyond the limit where there are as many."""
        with working(self.quiet, "reading the model and the samples"):
            return self.load_from(self.checkpoint, loss, more)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RenderingOptions(Settings):
    """What is rendered."""

    format: tuple[str, ...] = option(
        ("html", "pdf", "json"),
        "Repeatable (default: html, pdf, json).",
        OUTPUT,
        choices={name: name for name in FORMATS},
        recorded=False,
    )
    baseline: Path | None = option(None, "Earlier audit.json to compare with in the report.", OUTPUT, recorded=False)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReportOptions(RenderingOptions):
    """Where the report goes, and what it is held against."""

    policy: Path | None = option(
        None, "TOML file with limits: max_revealed, min_rmse, or a \\[policy] table of them.", POLICY, recorded=False
    )
    out: Path | None = option(
        None,
        "Folder for the results (default: reports/CHECKPOINT-TIME).",
        OUTPUT,
        recorded=False,
        written=True,
        aliases=("log",),
    )
    show_samples: bool = option(False, "Put the private images into the report, which says so.", OUTPUT)

    def folder(self, checkpoint: str) -> Path:
        """Where the results go."""
        return self.out or Path("reports") / f"{Path(checkpoint).stem}-{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ResumeOptions(Settings):
    """Whether finished trials are taken over."""

    resume: bool = option(False, "Go on with an interrupted run that had the same --out.", ATTACKS, recorded=False)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TrialOptions(ResumeOptions):
    """At what noise attacks run."""

    noise_stds: tuple[float, ...] = option(
        (),
        "Std of Gaussian noise instead of the release's own; repeatable; 0 is undefended.",
        ATTACKS,
        flags=("--noise-std",),
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyOptions(ResumeOptions):
    """How a study is run, and where its section goes."""

    attack_steps: int | None = option(None, "Steps of every attack (default: each's own).", ATTACKS)
    add_to: Path | None = option(
        None,
        "Earlier audit.json of the same checkpoint and data whose studies are kept beside the new one.",
        OUTPUT,
        file=True,
        written=True,
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PredictingStudyOptions(StudyOptions):
    """Of a study that attacks only where it is asked to."""

    attacks: bool = option(False, "Check the study's predictions by attacks, which takes longer.", ATTACKS)
