"""Figures of an attack study: the risk corridor per sample, and predictions against what attacks reached.

Kinds of points differ in marker as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from riskaudit.document.palette import colour
from riskaudit.document.plots import CorridorPlot, PanelPlot

_COLUMNS = 3
# Marker, colour and whether it is filled, in the order of `Corridor.errors`.
_CORRIDOR_STYLES = (("|", "ink", True), ("D", "low", True), ("^", "high", True), ("s", "muted", False))


def attack_plot_height(plot: CorridorPlot | PanelPlot) -> float:
    """Height of a figure in inches."""
    if isinstance(plot, CorridorPlot):
        return 1.35 + 0.165 * len(plot.corridors)
    rows = math.ceil(len(plot.panels) / _columns(plot))
    # Panels are square: three share the width, one alone would fill a page.
    return 0.75 + rows * {1: 2.5, 2: 2.9}.get(_columns(plot), 2.15)


def draw_attack_plot(
    figure: Figure, plot: CorridorPlot | PanelPlot, clear_frame: Callable[[Axes], None], drawable: Callable[[str], str]
) -> None:
    """Draw into an empty figure.

    Args:
        figure: to draw into.
        plot: what to draw.
        clear_frame: gives axes the report's look.
        drawable: makes text fit the figure's font.
    """
    if isinstance(plot, CorridorPlot):
        axes = figure.add_subplot()
        clear_frame(axes)
        _draw_corridors(figure, axes, plot, drawable)
    else:
        _draw_panels(figure, plot, clear_frame, drawable)


def _columns(plot: PanelPlot) -> int:
    return max(1, min(_COLUMNS, len(plot.panels)))


def _draw_corridors(figure: Figure, axes: Axes, plot: CorridorPlot, drawable: Callable[[str], str]) -> None:
    if plot.logarithmic:
        axes.set_xscale("log")
    for row, corridor in enumerate(plot.corridors):
        known = [error for error in corridor.errors if error is not None]
        if known:
            axes.plot([min(known), max(known)], [row, row], color=colour("rule"), linewidth=3.0, solid_capstyle="butt")
    handles = []
    for place, (title, (marker, hue, filled)) in enumerate(zip(plot.titles, _CORRIDOR_STYLES, strict=True)):
        points = [
            (error, row) for row, corridor in enumerate(plot.corridors) if (error := corridor.errors[place]) is not None
        ]
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
    labels = [drawable(corridor.label) for corridor in plot.corridors]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    if not plot.logarithmic:
        axes.set_xlim(left=0)
    axes.set_xlabel(plot.x_title, color=colour("ink"))
    axes.set_ylabel("sample", color=colour("ink"))
    _legend(figure, handles, 2)


def _draw_panels(
    figure: Figure, plot: PanelPlot, clear_frame: Callable[[Axes], None], drawable: Callable[[str], str]
) -> None:
    columns = _columns(plot)
    rows = math.ceil(len(plot.panels) / columns)
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(wspace=0.08, hspace=0.06)  # type: ignore[call-arg]
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    point: dict[str, Any] = {"linestyle": "none", "markersize": 4.5}
    solid = point | {"marker": "o", "color": colour("low")}
    hollow = point | {"marker": "s", "markerfacecolor": "none", "markeredgecolor": colour("medium")}
    for place, axes in enumerate(grid.flat):
        if place >= len(plot.panels):
            axes.set_visible(False)
            continue
        panel = plot.panels[place]
        clear_frame(axes)
        axes.grid(axis="y", color=colour("rule"), linewidth=0.6)
        if plot.logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.plot(plot.limits, plot.limits, color=colour("ink"), linewidth=1.0, linestyle=(0, (4, 2.5)))
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
    handles.append(
        Line2D([], [], label=plot.agreement_title, color=colour("ink"), linewidth=1.0, linestyle=(0, (4, 2.5)))
    )
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
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        labelcolor=colour("ink"),
        fontsize=8.5,
    )
