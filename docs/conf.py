"""Configuration of the documentation: built by `make docs`, and by `make check` with warnings as errors.

Nothing here asks the network, and no tool is needed that pip does not install.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "rush-executor"
author = "rush-executor contributors"
copyright = "2026, rush-executor contributors"
version = release = installed_version("rush-executor")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "printed_from_code", "command_line"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "rush-executor"
html_show_sourcelink = False
html_copy_source = False

# A heading can be linked to from another page, README-style: [text](page.md#heading).
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings say `name` for whatever is code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# There is one package; its name before every other says nothing.
add_module_names = False

# A reference to a public name of ours must lead somewhere. What the standard library and the libraries we stand on
# call their things would have to be fetched from the network; private names have no page.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!rush_executor\.).*"), ("py:.*", r"rush_executor\._.*")]
