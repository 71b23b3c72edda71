"""The document as one self-contained HTML file: no network, readable without JavaScript.

Everything is escaped by the template engine; the only markup that comes from outside a template is
the SVG that `figures` draws, whose text its writer escapes.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from riskaudit.document.blocks import Document, Figure
from riskaudit.document.figures import to_svg


def to_html(document: Document) -> bytes:
    """Render the document; the Content-Security-Policy allows its own script and nothing else."""
    environment = Environment(
        loader=PackageLoader("riskaudit.document"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates = files("riskaudit.document") / "templates"
    script = (templates / "audit.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("audit.html.j2").render(
        document=document,
        style=Markup((templates / "audit.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        svg=_svg,
        data_uri=_data_uri,
    )
    return page.encode()


def _svg(figure: Figure) -> Markup:
    picture = to_svg(figure.plot, f"fig-{figure.id}", "screen")
    label = Markup('<svg role="img" aria-label="{}"').format(figure.alt)
    return label + Markup(picture.removeprefix("<svg"))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
