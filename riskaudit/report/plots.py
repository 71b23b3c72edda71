"""What a figure shows, as data: `figures` draws it, and no other module needs matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["high", "medium", "low", "not_assessed"]


@dataclass(frozen=True)
class Reference:
    """A straight line across a plot, such as a threshold."""

    value: float
    label: str


@dataclass(frozen=True)
class Dot:
    """One sample: its value, interval where known, and verdict. Uncertain dots are drawn hollow."""

    label: str
    value: float
    low: float | None
    high: float | None
    level: Level
    certain: bool = True


@dataclass(frozen=True)
class DotPlot:
    """Samples from top (riskiest) to bottom, value on the x-axis."""

    x_title: str
    dots: tuple[Dot, ...]
    references: tuple[Reference, ...]
    x_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Span:
    """One group: mean with its interval, and the range of its samples."""

    label: str
    mean: float
    low: float | None
    high: float | None
    minimum: float
    maximum: float


@dataclass(frozen=True)
class SpanPlot:
    """Groups from top (riskiest) to bottom."""

    x_title: str
    spans: tuple[Span, ...]
    references: tuple[Reference, ...]
    x_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """A line through points; curves differ in dash and marker as well as in colour."""

    label: str
    y: tuple[float, ...]


@dataclass(frozen=True)
class CurvePlot:
    """Curves over one logarithmic x-axis."""

    x_title: str
    y_title: str
    x: tuple[float, ...]
    curves: tuple[Curve, ...]
    horizontal: tuple[Reference, ...] = ()
    vertical: tuple[Reference, ...] = ()
    y_limits: tuple[float, float] | None = None


Plot: TypeAlias = DotPlot | SpanPlot | CurvePlot
