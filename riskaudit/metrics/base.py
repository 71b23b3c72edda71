"""The metric interface: reconstructions and truth in, one number per sample out.

A metric is made for one `Subject` (shape, range and model of an audit), so that it can say beforehand
whether it is applicable; where it isn't, ``reason`` says why and its values are None, never a stand-in.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from riskaudit.errors import SettingsError
from riskaudit.results import MetricInfo
from riskaudit.tables import TableEncoding
from riskaudit.torchvision_compat import import_torchvision


@dataclass(frozen=True, eq=False)
class TextVocabulary:
    """What embedded texts are told by.

    Attributes:
        rows: what each token is embedded as, [V, E].
        known: numbers of tokens that everybody knows where they stand: the tokenizer's own, the mask token; [k].
    """

    rows: Tensor
    known: Tensor

    def tokens(self, embedded: Tensor) -> Tensor:
        """The nearest token at every position of embedded texts [B, T, E], [B, T] int64."""
        rows = self.rows.to(embedded)
        nearest = [torch.cdist(text, rows).argmin(-1) for text in embedded]
        return torch.stack(nearest) if nearest else torch.zeros(embedded.shape[:2], dtype=torch.long)

    def private(self, truth: Tensor) -> Tensor:
        """Positions [B, T] of embedded texts that hold tokens which not everybody knows."""
        return real_positions(truth) & ~torch.isin(self.tokens(truth), self.known.to(truth.device))

    def private_tokens(self, reconstruction: Tensor, truth: Tensor) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of texts and of their reconstructions [B, T, E] at the positions of `private`, text by text."""
        truth = truth.to(reconstruction)
        chosen = self.private(truth)
        guesses, targets = self.tokens(reconstruction), self.tokens(truth)
        pairs = [(guesses[row][chosen[row]].tolist(), targets[row][chosen[row]].tolist()) for row in range(len(truth))]
        return [guess for guess, _ in pairs], [target for _, target in pairs]


def real_positions(truth: Tensor) -> Tensor:
    """Positions [B, T] of embedded texts [B, T, E] that aren't padding, which is exactly zero."""
    return (truth != 0).any(-1)


@dataclass(frozen=True, eq=False)
class Subject:
    """What reconstructions are compared on.

    Attributes:
        input_shape: *S of one input; three dimensions [C, H, W] are an image.
        input_range: least and greatest value that an input coordinate can have, in data units; None where unknown.
        model: the audited model in eval mode, takes [B, *S]; needed by metrics in its feature space.
        weights_folder: where backbones of perceptual metrics lie; None is the torch hub cache.
        upload_size: n; of what is compared, samples of one upload stand together.
        encoding: of a table, which inputs belong to which column; None for other inputs.
        texts: of embedded texts [T, E], their vocabulary; None for other inputs.
    """

    input_shape: tuple[int, ...]
    input_range: tuple[float, float] | None = None
    model: nn.Module | None = None
    weights_folder: Path | None = None
    upload_size: int = 1
    encoding: TableEncoding | None = None
    texts: TextVocabulary | None = None

    @property
    def span(self) -> float | None:
        """Width of the input range in data units; None where it is unknown or empty."""
        if self.input_range is None:
            return None
        width = self.input_range[1] - self.input_range[0]
        return width if math.isfinite(width) and width > 0 else None


class Metric(ABC):
    """A distance or likeness of a reconstruction and the truth.

    Attributes:
        name: the key in `METRICS` and in audit.json.
        title: for readers.
        units: of the value.
        source: where it is defined.
        higher_is_better: whether a *higher* value is a better reconstruction (a worse leak).
        in_reports: whether `riskaudit verify` measures every reconstruction by it, and reports show it.
        of_tables: whether that is so of tables by an encoding alone.
        of_texts: whether that is so of texts alone.
        order: among the metrics of a report, the least first; those of one order as they are registered.
        reason: why it isn't applicable to the subject; None where it is.
        note: how it departs from its definition for this subject; None where it doesn't.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    units: ClassVar[str]
    source: ClassVar[str]
    higher_is_better: ClassVar[bool] = False
    in_reports: ClassVar[bool] = True
    of_tables: ClassVar[bool] = False
    of_texts: ClassVar[bool] = False
    order: ClassVar[int] = 1000
    reason: str | None = None
    note: str | None = None

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @classmethod
    def info(cls) -> MetricInfo:
        """What audit.json says of this metric."""
        return MetricInfo(
            id=cls.name, title=cls.title, units=cls.units, source=cls.source, higher_is_better=cls.higher_is_better
        )

    @abstractmethod
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        """One number per sample, [B], float64, on the CPU, of [B, *S] in data units; only where ``reason`` is None.

        Returns:
            [B], float64, on the CPU; defined only where ``reason`` is None.
        """


METRICS: dict[str, type[Metric]] = {}


def register(metric: type[Metric]) -> type[Metric]:
    """Class decorator: make a metric known by its name.

    Raises:
        SettingsError: the name is taken.
    """
    if metric.name in METRICS:
        raise SettingsError(f"the metric {metric.name!r} is registered twice")
    METRICS[metric.name] = metric
    return metric


def reported_metrics(*, tables: bool = False, texts: bool = False) -> tuple[str, ...]:
    """Names of the metrics in reports, in their order; those of tables by an encoding and of texts on demand."""
    ordered = sorted(METRICS.items(), key=lambda each: each[1].order)
    return tuple(
        name
        for name, metric in ordered
        if metric.in_reports and (tables or not metric.of_tables) and (texts or not metric.of_texts)
    )


def make_metrics(subject: Subject, names: Sequence[str] | None = None) -> tuple[Metric, ...]:
    """The named metrics for a subject, or all of them in the order of registration.

    Raises:
        SettingsError: an unknown name; the message lists the known.
    """
    chosen = list(METRICS) if names is None else list(dict.fromkeys(names))
    for name in chosen:
        if name not in METRICS:
            raise SettingsError(f"unknown metric {name[:50]!r}; known are {', '.join(METRICS)}")
    return tuple(METRICS[name](subject) for name in chosen)


def metric_notes(metrics: Sequence[Metric]) -> dict[str, str]:
    """Per metric why it isn't applicable, or how it departs from its definition; nothing of the others."""
    notes = {metric.name: metric.reason or metric.note for metric in metrics}
    return {name: text for name, text in notes.items() if text is not None}


def measure(metrics: Sequence[Metric], reconstruction: Tensor, truth: Tensor) -> list[dict[str, float | None]]:
    """All metrics of reconstructions [B, *S] beside the truth, in data units, one dictionary per sample.

    A value is None where the metric isn't applicable or the reconstruction isn't finite.

    Raises:
        ValueError: the shapes differ.
    """
    if reconstruction.shape != truth.shape:
        expected, actual = tuple(truth.shape), tuple(reconstruction.shape)
        raise ValueError(f"expected a reconstruction of the truth's shape {expected}, found {actual}")
    rows: list[dict[str, float | None]] = [{} for _ in range(len(truth))]
    if not rows:
        return rows
    finite = reconstruction.flatten(1).isfinite().all(1).tolist()
    # What isn't finite may raise inside a library; the truth stands in and the value is dropped.
    usable = reconstruction.where(reconstruction.isfinite(), truth.to(reconstruction))
    for metric in metrics:
        values = [math.nan] * len(rows) if metric.reason is not None else metric(usable, truth).tolist()
        for row, value, is_finite in zip(rows, values, finite, strict=True):
            row[metric.name] = value if is_finite and math.isfinite(value) else None
    return rows


def prior_only(metrics: Sequence[Metric], mean: Tensor, truth: Tensor) -> list[dict[str, float | None]]:
    """All metrics of the guess that needs no release, the prior mean: what every attack has to beat.

    The mean is in data units, of every sample [B, *S] or [B, d], of all [*S] or [d], or a scalar; truth [B, *S].
    """
    if mean.numel() not in {1, truth[0].numel(), truth.numel()}:
        raise ValueError(f"expected a prior mean that fits {tuple(truth.shape)}, found {tuple(mean.shape)}")
    if mean.numel() == truth.numel():
        guess = mean.reshape(truth.shape)
    elif mean.numel() == 1:
        guess = mean.reshape(())
    else:
        guess = mean.reshape(truth.shape[1:])
    return measure(metrics, guess.to(truth).expand_as(truth), truth)


def torchmetrics_image() -> ModuleType:
    """``torchmetrics.functional.image``."""
    # torchmetrics looks at torchvision when it is imported.
    import_torchvision()
    return importlib.import_module("torchmetrics.functional.image")


def lpips_package() -> ModuleType:
    """``lpips``."""
    import_torchvision()
    return importlib.import_module("lpips")
