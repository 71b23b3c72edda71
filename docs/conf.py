"""The site: every page is Markdown in this folder, and what a reference says is read off the code by `generate`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from riskaudit.version import __version__

project = "riskaudit"
author = "the riskaudit contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generate"]
suppress_warnings = ["myst.header"]  # pages that show Markdown, and RESULTS.md, begin sections at a second level

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 60
add_module_names = False
default_role = "py:obj"  # what stands in single backticks in a docstring

# Nothing is loaded from elsewhere: fonts are those of the reader's machine, and there are no formulas to typeset.
html_theme = "furo"
html_title = f"riskaudit {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
highlight_language = "none"
