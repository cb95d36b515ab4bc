"""Documentation by Sphinx and MyST: Markdown that also reads on its own, and a reference of docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes

from lsr_hpc import __version__

REPOSITORY = Path(__file__).parents[1]

project, author = "lsr_hpc", "the lsr_hpc developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_theme = "furo"
# Listings without a language are output or formulas.
highlight_language = "none"
html_title = "lsr_hpc"
html_show_copyright = False
html_show_sphinx = False

# ```math is what other readers of Markdown know, too.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Arguments come first in the reference, as in the docstrings; attributes of dataclasses are not told twice.
napoleon_use_ivar = True
napoleon_custom_sections = [("Collective", "notes_style"), ("Source", "notes_style")]
# What a package offers under a second name is described where it is defined.
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
html_math_renderer = "mathml"
# Two classes are called Outcome, and an annotation names one of them without its module.
suppress_warnings = ["ref.python"]


def _from_repository(_app: Any, page: str, source: list[str]) -> None:
    """The README and the changelog are pages; their links lead from the repository's root."""
    if page in {"readme", "changelog"}:
        text = (REPOSITORY / f"{page.upper()}.md").read_text(encoding="utf-8")
        source[0] = text
    text = source[0]
    text = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
    text = re.sub(r"\]\((?:\.\./)?README\.md", "](readme.md", text)
    source[0] = re.sub(r"\]\((?:\.\./)?CHANGELOG\.md", "](changelog.md", text)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    # Browsers draw MathML themselves: no script and no network are needed to read an equation.
    equation = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{equation}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register what is above."""
    app.connect("source-read", _from_repository)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
