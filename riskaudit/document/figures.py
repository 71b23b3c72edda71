"""Plots as SVG, drawn with matplotlib's object interface (no pyplot, no global state kept).

Colours are drawn as placeholders and replaced at the end: by CSS variables for HTML, so that a
figure follows the light or dark theme, and by fixed colours for print. Text stays text in HTML; in
print it becomes outlines, so that the PDF doesn't depend on installed fonts.
"""

from __future__ import annotations

import io
import re
from typing import Any, Literal, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import NullLocator

from riskaudit.document.attack_figures import attack_plot_height, draw_attack_plot
from riskaudit.document.palette import COLOURS as _COLOURS
from riskaudit.document.palette import colour as _colour
from riskaudit.document.plots import CorridorPlot, CurvePlot, DotPlot, Level, PanelPlot, Plot, Reference, SpanPlot

Medium: TypeAlias = Literal["screen", "print"]

_MARKERS: dict[Level, str] = {"high": "^", "medium": "D", "low": "o", "not_assessed": "s"}
_LABELLED_DOTS = 32
# Fewer points than this on a logarithmic axis are its ticks.
_FEW_POINTS = 8
_WIDTH = 6.6
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.linewidth": 0.8,
    "text.usetex": False,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


def to_svg(plot: Plot, identity: str, medium: Medium) -> str:
    """One plot as an ``<svg>`` element whose ids all start with ``identity``.

    The same plot gives the same bytes: no date, and ids are seeded.
    """
    settings: Any = {**_STYLE, "svg.hashsalt": identity, "svg.fonttype": "none" if medium == "screen" else "path"}
    with matplotlib.rc_context():
        # A matplotlibrc in the current folder changes no figure, and runs no LaTeX.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH, _height(plot)), layout="constrained")
        FigureCanvasSVG(figure)
        if isinstance(plot, CorridorPlot | PanelPlot):
            draw_attack_plot(figure, plot, _clear_frame, drawable)
        else:
            axes = figure.add_subplot()
            _clear_frame(axes)
            if isinstance(plot, DotPlot):
                _draw_dots(axes, plot)
            elif isinstance(plot, SpanPlot):
                _draw_spans(axes, plot)
            else:
                _draw_curves(axes, plot)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _clean_svg(stream.getvalue(), identity, medium)


def _height(plot: Plot) -> float:
    if isinstance(plot, CorridorPlot | PanelPlot):
        return attack_plot_height(plot)
    if isinstance(plot, DotPlot):
        rows = len(plot.dots)
        return 1.15 + 0.155 * rows if rows <= _LABELLED_DOTS else 4.2
    return 1.3 + 0.27 * len(plot.spans) if isinstance(plot, SpanPlot) else 3.1


def drawable(text: str) -> str:
    """``text`` with characters that the figure font lacks written as their code."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known else f"U+{ord(letter):04X}" for letter in text)


def _clear_frame(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_colour("muted"))
    axes.tick_params(colors=_colour("ink"), length=3, width=0.8)
    axes.grid(axis="x", color=_colour("rule"), linewidth=0.6)
    axes.set_axisbelow(True)


def _x_axis(axes: Axes, title: str, limits: tuple[float, float] | None) -> None:
    axes.set_xlabel(title, color=_colour("ink"))
    if limits:
        margin = 0.015 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - margin, limits[1] + margin)


def _references(axes: Axes, references: tuple[Reference, ...]) -> None:
    """Vertical lines, each labelled above the plot on its own level so that labels can't overlap."""
    for level, reference in enumerate(references):
        axes.axvline(reference.value, color=_colour("ink"), linewidth=1.0, linestyle=(0, (4, 2.5)))
        axes.annotate(
            reference.label,
            (reference.value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * level),
            textcoords="offset points",
            ha="right" if _in_right_half(axes, reference.value) else "left",
            va="bottom",
            color=_colour("ink"),
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
    size = 28.0 if few else 8.0
    bars = [
        (row, dot.value if dot.low is None else dot.low, dot.value if dot.high is None else dot.high, dot.level)
        for row, dot in enumerate(plot.dots)
        if dot.low is not None or dot.high is not None
    ]
    for row, low, high, level in bars:
        if low is not None and high is not None:
            axes.plot(
                [low, high],
                [row, row],
                color=_colour(level),
                linewidth=1.6 if few else 0.7,
                alpha=0.75 if few else 0.5,
            )
    for level, marker in _MARKERS.items():
        for certain in (True, False):
            chosen = [
                (dot.value, row)
                for row, dot in enumerate(plot.dots)
                if (dot.level, dot.certain) == (level, certain) and dot.value is not None
            ]
            if chosen:
                axes.scatter(
                    [value for value, _ in chosen],
                    [row for _, row in chosen],
                    s=size,
                    marker=marker,
                    facecolors=_colour(level) if certain else _colour("paper"),
                    edgecolors=_colour(level),
                    linewidths=1.0,
                    zorder=3,
                )
    _x_axis(axes, plot.x_title, plot.x_limits)
    if few:
        _row_labels(axes, [dot.label for dot in plot.dots])
        axes.set_ylabel("sample", color=_colour("ink"))
    else:
        axes.set_ylim(len(plot.dots) + 0.5, -1.5)
        axes.set_ylabel("rank of the sample (0 = most exposed)", color=_colour("ink"))
    _references(axes, plot.references)


def _draw_spans(axes: Axes, plot: SpanPlot) -> None:
    for row, span in enumerate(plot.spans):
        axes.plot([span.minimum, span.maximum], [row, row], color=_colour("muted"), linewidth=1.0)
        if span.low is not None and span.high is not None:
            axes.plot([span.low, span.high], [row, row], color=_colour("low"), linewidth=5.0, alpha=0.5)
        axes.plot([span.mean], [row], marker="s", markersize=6, color=_colour("low"))
    _x_axis(axes, plot.x_title, plot.x_limits)
    _row_labels(axes, [span.label for span in plot.spans])
    axes.set_ylabel(plot.y_title, color=_colour("ink"))
    _references(axes, plot.references)


def _draw_curves(axes: Axes, plot: CurvePlot) -> None:
    styles = (("high", "-", "^"), ("low", (0, (5, 2)), "o"), ("medium", (0, (1.5, 1.5)), "D"))
    least = min((x for x in plot.x if x > 0), default=1.0)
    axes.set_xscale(plot.x_scale, **({"linthresh": least} if plot.x_scale == "symlog" else {}))
    axes.grid(axis="y", color=_colour("rule"), linewidth=0.6)
    for (colour, dash, marker), curve in zip(styles, plot.curves, strict=False):
        axes.plot(
            plot.x, curve.y, color=_colour(colour), linestyle=dash, marker=marker, markersize=4.5, label=curve.label
        )
    if plot.y_limits:
        axes.set_ylim(plot.y_limits[0] - 0.02, plot.y_limits[1] + 0.03)
    axes.set_xlabel(plot.x_title, color=_colour("ink"))
    axes.set_ylabel(plot.y_title, color=_colour("ink"))
    for reference in plot.horizontal:
        axes.axhline(reference.value, color=_colour("ink"), linewidth=0.9, linestyle=(0, (4, 2.5)))
        axes.annotate(
            reference.label,
            (1.0, reference.value),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=_colour("ink"),
            fontsize=8.0,
            parse_math=False,
        )
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
        labelcolor=_colour("ink"),
        handlelength=3.2,
    )


def _log_limits(axes: Axes, values: list[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive:
        axes.set_xlim(min(positive) / 1.3, max(positive) * 1.3)


def _clean_svg(text: str, identity: str, medium: Medium) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A size in points would fix the figure's width on screen; the viewBox alone lets it scale.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{identity}-\1"', text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{identity}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{identity}-\1)", text)
    for placeholder, variable, colour in _COLOURS.values():
        text = text.replace(placeholder, f"var({variable})" if medium == "screen" else colour)
    return re.sub(r"\n\s*", "\n", text).strip()
