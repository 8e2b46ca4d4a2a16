"""Sphinx settings of the documentation site: `make docs` builds it into build/site."""

from __future__ import annotations

import sys
from pathlib import Path

import cgrseg

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "CGRSeg"
author = "The CGRSeg maintainers"
copyright = "The CGRSeg maintainers, Apache License 2.0"
version = release = cgrseg.__version__

# The source folder is the repository, so that links between documentation, README and
# benchmark results work here as they do in a checkout.
root_doc = "docs/index"
include_patterns = [
    *("docs/**", "benchmarks/results/*.md", "examples/**/*.md"),
    *("CHANGELOG.md", "CONTRIBUTING.md"),
]
# Tables for accuracy.md, no pages.
exclude_patterns = ["benchmarks/results/accuracy_runs.md", "benchmarks/results/screening.md"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "error_page",
]
myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False  # a return value is described in words, not by a type name

# Every reference must resolve, but for those to other projects, and to settings, which
# configuration.md describes.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|concurrent|contextlib|enum|pathlib|signal|typing)\..*"),
    (r"py:.*", r"cgrseg\.config\.schema\..*"),
    (r"py:.*", r"(huggingface_hub|lightning|numpy|pydantic|torch|torchmetrics)\..*"),
    # Names of annotations that are imported for type checkers alone.
    (r"py:.*", r"(rich\..*|Console|Precision|Tensor)"),
]

html_theme = "furo"
html_title = f"CGRSeg {release}"
html_static_path: list[str] = []
html_show_sphinx = False
