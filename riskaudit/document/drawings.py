"""How each plot is drawn: a function per kind of plot, into an empty figure, and its height.

Colours are placeholders, which `figures` replaces. Kinds of points differ in marker as well as in colour.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import product, zip_longest
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from riskaudit.document.plots import (
    CorridorPlot,
    CurvePlot,
    DotPlot,
    FrontPlot,
    Level,
    PairPlot,
    PanelPlot,
    Plot,
    Reference,
    ScalePlot,
    SpanPlot,
)

# Placeholder, CSS variable, colour in print. Hues after Okabe and Ito.
COLOURS = {
    "ink": ("#010203", "--ink", "#1b1f24"),
    "muted": ("#010204", "--muted", "#57606a"),
    "rule": ("#010205", "--rule", "#c9cfd6"),
    "high": ("#010206", "--fig-high", "#c2410c"),
    "medium": ("#010207", "--fig-medium", "#b07d00"),
    "low": ("#010208", "--fig-low", "#0b63b0"),
    "not_assessed": ("#010209", "--muted", "#57606a"),
    "paper": ("#01020a", "--paper", "#ffffff"),
}
_MARKERS: dict[Level, str] = {"high": "^", "medium": "D", "low": "o", "not_assessed": "s"}
_LABELLED_DOTS = 32
# Fewer points than this on a logarithmic axis are its ticks.
_FEW_POINTS = 8
_PANEL_COLUMNS = 3
# Dots nearer than such a part of a scale are stacked.
_SCALE_BINS = 90
_DASHES = (0, (4, 2.5))
# Marker, colour and whether it is filled, in the order of `Corridor.errors`.
_CORRIDOR_STYLES = (("|", "ink", True), ("D", "low", True), ("^", "high", True), ("s", "muted", False))
# Marker, colour and whether it is filled, in the order of `Pair.values`.
_PAIR_STYLES = (("^", "high", True), ("o", "low", False))


def colour(name: str) -> str:
    """The placeholder of a colour, to draw with."""
    return COLOURS[name][0]


def drawable(text: str) -> str:
    """``text`` with characters that the figure font lacks written as their code."""
    charmap = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in charmap else f"U+{ord(letter):04X}" for letter in text)


def height(plot: Plot) -> float:
    """Height of a plot's figure in inches."""
    match plot:
        case DotPlot():
            return 1.15 + 0.155 * len(plot.dots) if len(plot.dots) <= _LABELLED_DOTS else 4.2
        case SpanPlot():
            return 1.3 + 0.27 * len(plot.spans)
        case ScalePlot() | CurvePlot():
            return 1.2 if isinstance(plot, ScalePlot) else 3.1
        case FrontPlot() | CorridorPlot():
            # The legend of a front names its points.
            return 3.5 + 0.08 * len(plot.points) if isinstance(plot, FrontPlot) else 1.35 + 0.165 * len(plot.corridors)
        case PairPlot():
            return 1.6 + 0.165 * len(plot.pairs) if len(plot.pairs) <= _LABELLED_DOTS else 4.4
        case PanelPlot():
            columns = _columns(plot)
            # Panels are square: three share the width, one alone would fill a page.
            return 0.75 + math.ceil(len(plot.panels) / columns) * {1: 2.5, 2: 2.9}.get(columns, 2.15)


def draw(figure: Figure, plot: Plot) -> None:
    """Draw a plot into an empty figure."""
    if isinstance(plot, PanelPlot):
        _draw_panels(figure, plot)
        return
    axes = figure.add_subplot()
    _clear_frame(axes)
    match plot:
        case DotPlot():
            _draw_dots(axes, plot)
        case ScalePlot():
            _draw_scale(axes, plot)
        case SpanPlot():
            _draw_spans(axes, plot)
        case CurvePlot():
            _draw_curves(axes, plot)
        case CorridorPlot():
            _draw_corridors(figure, axes, plot)
        case PairPlot():
            _draw_pairs(figure, axes, plot)
        case FrontPlot():
            _draw_front(figure, axes, plot)


def _clear_frame(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour("muted"))
    axes.tick_params(colors=colour("ink"), length=3, width=0.8)
    axes.grid(axis="x", color=colour("rule"), linewidth=0.6)
    axes.set_axisbelow(True)


def _x_axis(axes: Axes, title: str, limits: tuple[float, float] | None) -> None:
    axes.set_xlabel(title, color=colour("ink"))
    if limits:
        margin = 0.015 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - margin, limits[1] + margin)


def _references(axes: Axes, references: tuple[Reference, ...]) -> None:
    """Vertical lines, each labelled above the plot on its own level so that labels can't overlap."""
    for level, reference in enumerate(references):
        axes.axvline(reference.value, color=colour("ink"), linewidth=1.0, linestyle=_DASHES)
        axes.annotate(
            reference.label,
            (reference.value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * level),
            textcoords="offset points",
            ha="right" if _in_right_half(axes, reference.value) else "left",
            va="bottom",
            color=colour("ink"),
            fontsize=8.0,
            parse_math=False,
        )


def _in_right_half(axes: Axes, value: float) -> bool:
    low, high = axes.get_xlim()
    return value > low + 0.62 * (high - low)


def _row_labels(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), [drawable(label) for label in labels], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _draw_dots(axes: Axes, plot: DotPlot) -> None:
    few = len(plot.dots) <= _LABELLED_DOTS
    for row, dot in enumerate(plot.dots):
        low = dot.value if dot.low is None else dot.low
        high = dot.value if dot.high is None else dot.high
        if (dot.low, dot.high) != (None, None) and low is not None and high is not None:
            line, alpha = (1.6, 0.75) if few else (0.7, 0.5)
            axes.plot([low, high], [row, row], color=colour(dot.level), linewidth=line, alpha=alpha)
    for level, certain in product(_MARKERS, (True, False)):
        points = [
            (dot.value, row)
            for row, dot in enumerate(plot.dots)
            if (dot.level, dot.certain) == (level, certain) and dot.value is not None
        ]
        if points:
            axes.scatter(
                [value for value, _ in points],
                [row for _, row in points],
                s=28.0 if few else 8.0,
                marker=_MARKERS[level],
                facecolors=colour(level if certain else "paper"),
                edgecolors=colour(level),
                linewidths=1.0,
                zorder=3,
            )
    _x_axis(axes, plot.x_title, plot.x_limits)
    if few:
        _row_labels(axes, [dot.label for dot in plot.dots])
        axes.set_ylabel(plot.y_title, color=colour("ink"))
    else:
        axes.set_ylim(len(plot.dots) + 0.5, -1.5)
        axes.set_ylabel("rank of the sample (0 = most exposed)", color=colour("ink"))
    _references(axes, plot.references)


def _draw_scale(axes: Axes, plot: ScalePlot) -> None:
    start, end = plot.start.value, plot.end.value
    placed = [(dot, place) for dot in plot.dots if (place := dot.low if dot.value is None else dot.value) is not None]
    # An error above the guess lies beyond the scale's start.
    outermost = max([start, *(place for _, place in placed)], key=lambda place: abs(place - end))
    width = abs(outermost - end) / _SCALE_BINS
    stacks: Counter[int] = Counter()
    drawn: defaultdict[tuple[Level, bool], list[tuple[float, int]]] = defaultdict(list)
    for dot, place in placed:
        spot = round(abs(place - end) / width)
        drawn[dot.level, dot.certain and dot.value is not None].append((place, stacks[spot]))
        stacks[spot] += 1
    for (level, certain), points in drawn.items():
        axes.scatter(
            [place for place, _ in points],
            [height for _, height in points],
            s=14.0,
            marker=_MARKERS[level],
            facecolors=colour(level if certain else "paper"),
            edgecolors=colour(level),
            linewidths=0.8,
            zorder=3,
            clip_on=False,
        )
    margin = 0.02 * (outermost - end)
    axes.set_xlim(outermost + margin, end - margin)
    axes.set_ylim(-0.6, max(7.0, 1.05 * max(stacks.values(), default=0)))
    axes.set_yticks([])
    axes.set_xlabel(plot.x_title, color=colour("ink"))
    for reference, side in ((plot.start, "left"), (plot.end, "right")):
        axes.axvline(reference.value, color=colour("ink"), linewidth=1.0, linestyle=_DASHES)
        axes.annotate(
            reference.label,
            (reference.value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=colour("ink"),
            fontsize=8.5,
            parse_math=False,
        )


def _draw_spans(axes: Axes, plot: SpanPlot) -> None:
    for row, span in enumerate(plot.spans):
        axes.plot([span.minimum, span.maximum], [row, row], color=colour("muted"), linewidth=1.0)
        if span.low is not None and span.high is not None:
            axes.plot([span.low, span.high], [row, row], color=colour("low"), linewidth=5.0, alpha=0.5)
        axes.plot([span.mean], [row], marker="s", markersize=6, color=colour("low"))
    _x_axis(axes, plot.x_title, plot.x_limits)
    _row_labels(axes, [span.label for span in plot.spans])
    axes.set_ylabel(plot.y_title, color=colour("ink"))
    _references(axes, plot.references)


def _draw_curves(axes: Axes, plot: CurvePlot) -> None:
    styles = (("high", "-", "^"), ("low", (0, (5, 2)), "o"), ("medium", (0, (1.5, 1.5)), "D"))
    least = min((x for x in plot.x if x > 0), default=1.0)
    axes.set_xscale(plot.x_scale, **({"linthresh": least} if plot.x_scale == "symlog" else {}))
    axes.grid(axis="y", color=colour("rule"), linewidth=0.6)
    for (hue, dash, marker), curve in zip(styles, plot.curves, strict=False):
        axes.plot(plot.x, curve.y, color=colour(hue), linestyle=dash, marker=marker, markersize=4.5, label=curve.label)
    if plot.y_limits:
        axes.set_ylim(plot.y_limits[0] - 0.02, plot.y_limits[1] + 0.03)
    axes.set_xlabel(plot.x_title, color=colour("ink"))
    axes.set_ylabel(plot.y_title, color=colour("ink"))
    _horizontal(axes, plot.horizontal)
    if plot.x_scale == "log":
        _log_limits(axes, [*plot.x, *(reference.value for reference in plot.vertical)])
    if len(plot.x) <= _FEW_POINTS:
        axes.set_xticks(plot.x, [f"{x:g}" for x in plot.x])
        axes.xaxis.set_minor_locator(NullLocator())
    _references(axes, plot.vertical)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0 + 0.055 * len(plot.vertical)),
        ncols=len(plot.curves),
        frameon=False,
        labelcolor=colour("ink"),
        handlelength=3.2,
    )


def _horizontal(axes: Axes, references: tuple[Reference, ...]) -> None:
    """Horizontal lines, labelled at their right ends."""
    for reference in references:
        axes.axhline(reference.value, color=colour("ink"), linewidth=0.9, linestyle=_DASHES)
        axes.annotate(
            reference.label,
            (1.0, reference.value),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour("ink"),
            fontsize=8.0,
            parse_math=False,
        )


def _draw_front(figure: Figure, axes: Axes, plot: FrontPlot) -> None:
    """Numbers stand for the choices, which the legend names: labels beside points would lie on each other."""
    styles: list[dict[str, Any]] = [
        {"marker": marker, "markersize": 5.5, "linestyle": "none", "markeredgecolor": colour(hue),
         "markerfacecolor": colour(hue) if filled else "none"}
        for marker, hue, filled in (("^", "high", True), ("^", "high", False), ("o", "low", False))
    ]  # fmt: skip
    axes.grid(axis="y", color=colour("rule"), linewidth=0.6)
    front = sorted((point.x, point.y) for point in plot.points if point.on_front)
    axes.plot([x for x, _ in front], [y for _, y in front], color=colour("high"), linewidth=0.9)
    for place, point in enumerate(plot.points, start=1):
        for ends, coordinates in ((point.x_ends, (None, point.y)), (point.y_ends, (point.x, None))):
            if ends is not None:
                xs, ys = (ends if each is None else (each, each) for each in coordinates)
                axes.plot(xs, ys, color=colour("high"), linewidth=0.9, alpha=0.5)
        axes.plot([point.x], [point.y], zorder=3, **styles[0 if point.on_front else 1])
        if point.other is not None:
            axes.plot([point.x] * 2, [point.y, point.other], color=colour("rule"), linewidth=2.0, zorder=1)
            axes.plot([point.x], [point.other], zorder=3, **styles[2])
        axes.annotate(
            str(place), (point.x, point.y), xytext=(5, 4), textcoords="offset points", color=colour("ink"), fontsize=8.0
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel(plot.x_title, color=colour("ink"))
    axes.set_ylabel(plot.y_title, color=colour("ink"))
    _horizontal(axes, plot.references)
    kinds = [Line2D([], [], label=title, **style) for title, style in zip(plot.titles, styles, strict=True)]
    names = [
        Line2D([], [], linestyle="none", label=drawable(f"{place}: {point.label}"))
        for place, point in enumerate(plot.points, start=1)
    ]
    _legend(figure, [*kinds, *names], 2)


def _log_limits(axes: Axes, values: list[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive:
        axes.set_xlim(min(positive) / 1.3, max(positive) * 1.3)


def _columns(plot: PanelPlot) -> int:
    return max(1, min(_PANEL_COLUMNS, len(plot.panels)))


def _draw_corridors(figure: Figure, axes: Axes, plot: CorridorPlot) -> None:
    if plot.logarithmic:
        axes.set_xscale("log")
    for row, corridor in enumerate(plot.corridors):
        errors = [error for error in corridor.errors if error is not None]
        if errors:
            axes.plot(
                [min(errors), max(errors)], [row, row], color=colour("rule"), linewidth=3.0, solid_capstyle="butt"
            )
    handles = []
    for number, (title, (marker, hue, filled)) in enumerate(zip(plot.titles, _CORRIDOR_STYLES, strict=True)):
        drawn = [(corridor.errors[number], row) for row, corridor in enumerate(plot.corridors)]
        points = [(error, row) for error, row in drawn if error is not None]
        if not points:
            continue
        style: dict[str, Any] = {
            "marker": marker,
            "markersize": 7.0 if marker == "|" else 4.5,
            "markeredgecolor": colour(hue),
            "markerfacecolor": colour(hue) if filled else "none",
            "markeredgewidth": 1.6 if marker == "|" else 1.0,
            "linestyle": "none",
        }
        axes.plot([x for x, _ in points], [y for _, y in points], zorder=3, **style)
        handles.append(Line2D([], [], label=title, **style))
    _row_labels(axes, [corridor.label for corridor in plot.corridors])
    if not plot.logarithmic:
        axes.set_xlim(left=0)
    axes.set_xlabel(plot.x_title, color=colour("ink"))
    axes.set_ylabel("sample", color=colour("ink"))
    _legend(figure, handles, 2)


def _draw_pairs(figure: Figure, axes: Axes, plot: PairPlot) -> None:
    few = len(plot.pairs) <= _LABELLED_DOTS
    for row, pair in enumerate(plot.pairs):
        middles = [_middle(value, ends) for value, ends in zip(pair.values, pair.ends, strict=True)]
        joined = [middle for middle in middles if middle is not None]
        if len(joined) == 2:
            width = 3.0 if few else 1.0
            axes.plot(joined, [row, row], color=colour("rule"), linewidth=width, solid_capstyle="butt")
    handles = []
    for number, (title, (marker, hue, filled)) in enumerate(zip(plot.titles, _PAIR_STYLES, strict=True)):
        # Intervals of the two lie beside each other, not on one another.
        beside = (-0.15, 0.15)[number]
        for row, pair in enumerate(plot.pairs):
            ends = pair.ends[number]
            if ends is not None and ends[0] < ends[1]:
                axes.plot(ends, [row + beside] * 2, color=colour(hue), linewidth=1.2 if few else 0.5, alpha=0.75)
        style: dict[str, Any] = {
            "marker": marker,
            "markersize": 5.0 if few else 2.5,
            "markeredgecolor": colour(hue),
            "markerfacecolor": colour(hue) if filled else "none",
            "linestyle": "none",
        }
        points = [(value, row) for row, pair in enumerate(plot.pairs) if (value := pair.values[number]) is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], zorder=3, **style)
        handles.append(Line2D([], [], label=title, **style | {"markersize": 5.0}))
    _x_axis(axes, plot.x_title, plot.x_limits)
    if few:
        _row_labels(axes, [pair.label for pair in plot.pairs])
        axes.set_ylabel(plot.y_title, color=colour("ink"))
    else:
        axes.set_ylim(len(plot.pairs) + 0.5, -1.5)
        axes.set_ylabel("rank of the sample (0 = most exposed)", color=colour("ink"))
    _references(axes, plot.references)
    _legend(figure, handles, len(handles))


def _middle(value: float | None, ends: tuple[float, float] | None) -> float | None:
    """A number, or the middle of where it lies."""
    return fmean(ends) if value is None and ends is not None else value


def _draw_panels(figure: Figure, plot: PanelPlot) -> None:
    columns = _columns(plot)
    rows = math.ceil(len(plot.panels) / columns)
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(wspace=0.08, hspace=0.06)  # type: ignore[call-arg]
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    point: dict[str, Any] = {"linestyle": "none", "markersize": 4.5}
    solid = point | {"marker": "o", "color": colour("low")}
    hollow = point | {"marker": "s", "markerfacecolor": "none", "markeredgecolor": colour("medium")}
    for panel, axes in zip_longest(plot.panels, grid.flat):
        if panel is None:
            axes.set_visible(False)
            continue
        _clear_frame(axes)
        axes.grid(axis="y", color=colour("rule"), linewidth=0.6)
        if plot.logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.plot(plot.limits, plot.limits, color=colour("ink"), linewidth=1.0, linestyle=_DASHES)
        for points, style in ((panel.apart, hollow), (panel.points, solid)):
            axes.plot([x for x, _ in points], [y for _, y in points], **style)
        if plot.joined:
            axes.plot([x for x, _ in panel.points], [y for _, y in panel.points], color=colour("low"), linewidth=1.0)
        axes.set(xlim=plot.limits, ylim=plot.limits, aspect="equal")
        if plot.logarithmic:
            _decimal_ticks(axes)
        axes.set_title(drawable(panel.title), fontsize=9.0, color=colour("ink"), parse_math=False)
    figure.supxlabel(plot.x_title, color=colour("ink"), fontsize=9.0)
    figure.supylabel(plot.y_title, color=colour("ink"), fontsize=9.0)
    handles = [Line2D([], [], label=plot.points_title, **solid)]
    if any(panel.apart for panel in plot.panels):
        handles.append(Line2D([], [], label=plot.apart_title, **hollow))
    handles.append(Line2D([], [], label=plot.agreement_title, color=colour("ink"), linewidth=1.0, linestyle=_DASHES))
    _legend(figure, handles, len(handles))


def _decimal_ticks(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of each decade, written out: errors rarely span more than two decades."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        subs = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0) if high > 10 * low else (1.0, 2.0, 3.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())


def _legend(figure: Figure, handles: list[Line2D], columns: int) -> None:
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        labelcolor=colour("ink"),
        fontsize=8.5,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
