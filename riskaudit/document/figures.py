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
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from riskaudit.document.drawings import COLOURS, draw, height
from riskaudit.document.plots import Plot

Medium: TypeAlias = Literal["screen", "print"]

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
        figure = Figure(figsize=(_WIDTH, height(plot)), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, plot)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _clean_svg(stream.getvalue(), identity, medium)


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
    for placeholder, variable, colour in COLOURS.values():
        text = text.replace(placeholder, f"var({variable})" if medium == "screen" else colour)
    return re.sub(r"\n\s*", "\n", text).strip()
