"""Sphinx configuration. ``make docs`` builds with warnings as errors and runs the examples."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from lightning_gc import __version__

project = "lightning-gc"
author = "the lightning-gc contributors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx_copybutton"]
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
html_math_renderer = "mathml"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def render_formula(translator: HTML5Translator, node: nodes.Node) -> None:
    """Write a formula as MathML, which browsers show by themselves: without a script, and without a network."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(f'<span class="math {display}">{convert(node.astext(), display=display)}</span>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the renderer that `html_math_renderer` names."""
    app.add_html_math_renderer("mathml", (render_formula, None), (render_formula, None))
