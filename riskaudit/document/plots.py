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
    """One sample: its value and interval where known, and verdict. Uncertain dots are drawn hollow."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    level: Level
    certain: bool = True


@dataclass(frozen=True)
class DotPlot:
    """Samples, or what else the dots stand for, from top (riskiest) to bottom, value on the x-axis."""

    x_title: str
    dots: tuple[Dot, ...]
    references: tuple[Reference, ...]
    x_limits: tuple[float, float] | None = None
    y_title: str = "sample"


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
    """Groups from top (riskiest) to bottom; ``y_title`` says what a group is."""

    x_title: str
    spans: tuple[Span, ...]
    references: tuple[Reference, ...]
    x_limits: tuple[float, float] | None = None
    y_title: str = "class"


@dataclass(frozen=True)
class Curve:
    """A line through points; curves differ in dash and marker as well as in colour."""

    label: str
    y: tuple[float, ...]


@dataclass(frozen=True)
class CurvePlot:
    """Curves over one x-axis; "symlog" is logarithmic with a 0."""

    x_title: str
    y_title: str
    x: tuple[float, ...]
    curves: tuple[Curve, ...]
    horizontal: tuple[Reference, ...] = ()
    vertical: tuple[Reference, ...] = ()
    y_limits: tuple[float, float] | None = None
    x_scale: Literal["log", "linear", "symlog"] = "log"


@dataclass(frozen=True)
class Corridor:
    """One sample's errors on one axis; None where there is none."""

    label: str
    low: float | None
    predicted: float | None
    attacked: float | None
    prior_only: float | None

    @property
    def errors(self) -> tuple[float | None, ...]:
        """All four, in the order of the plot's titles."""
        return self.low, self.predicted, self.attacked, self.prior_only


@dataclass(frozen=True)
class CorridorPlot:
    """Samples from top (most exposed) to bottom; ``titles`` name a corridor's errors in the legend."""

    x_title: str
    titles: tuple[str, str, str, str]
    corridors: tuple[Corridor, ...]
    logarithmic: bool


@dataclass(frozen=True)
class Panel:
    """Points (x, y) of one panel; ``apart`` are drawn hollow, as another kind of thing."""

    title: str
    points: tuple[tuple[float, float], ...]
    apart: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class PanelPlot:
    """Panels on equal scales, each with the line on which both coordinates agree."""

    x_title: str
    y_title: str
    panels: tuple[Panel, ...]
    points_title: str
    apart_title: str
    agreement_title: str
    logarithmic: bool
    limits: tuple[float, float]
    joined: bool = False


@dataclass(frozen=True)
class Pair:
    """One sample's two numbers and their intervals, where known."""

    label: str
    values: tuple[float | None, float | None]
    ends: tuple[tuple[float, float] | None, tuple[float, float] | None]


@dataclass(frozen=True)
class PairPlot:
    """Samples from top (riskiest) to bottom, two numbers each; ``titles`` name these in the legend."""

    x_title: str
    y_title: str
    titles: tuple[str, str]
    pairs: tuple[Pair, ...]
    references: tuple[Reference, ...]
    x_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class FrontPoint:
    """One choice: what it costs (x) and what it gives (y), with intervals where known; ``other`` is a second y."""

    label: str
    x: float
    x_ends: tuple[float, float] | None
    y: float
    y_ends: tuple[float, float] | None
    other: float | None
    on_front: bool


@dataclass(frozen=True)
class FrontPlot:
    """Choices by two numbers, those on the front joined; ``titles``: on the front, not on it, and the second y.

    ``references`` are horizontal.
    """

    x_title: str
    y_title: str
    points: tuple[FrontPoint, ...]
    titles: tuple[str, str, str]
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class ScalePlot:
    """Samples as dots on one axis, which runs from ``start`` at the left to ``end`` at the right.

    Dots at one place are stacked. One without a value is drawn hollow at its lower end.
    """

    x_title: str
    dots: tuple[Dot, ...]
    start: Reference
    end: Reference


Plot: TypeAlias = ScalePlot | DotPlot | SpanPlot | CurvePlot | CorridorPlot | PanelPlot | PairPlot | FrontPlot
