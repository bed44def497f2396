"""Sphinx configuration. ``make docs`` builds with warnings as errors and runs the examples."""

from lightning_gc import __version__

project = "lightning-gc"
author = "the lightning-gc contributors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "study"]  # what study.md includes
nitpicky = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# What the callback overrides is Lightning's to document.
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

doctest_global_setup = "import torch\nfrom torch import nn\nfrom lightning_gc import *"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"{project} {release}"
