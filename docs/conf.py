"""The site of documentation: `make docs` builds it from these pages, the README and the docstrings."""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import SphinxError

project = "lightning_probes"
author = "The lightning_probes authors"
version = release = installed("lightning-probes")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # the README's headings stand below a title of their own

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"  # the signatures are long enough without
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
default_role = "py:obj"  # `Probe` in a docstring is a link where there is one, else code
napoleon_use_rtype = False
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "lightning_probes"
html_show_sphinx = False
html_math_renderer = "mathml"

README = Path(__file__).parents[1] / "README.md"
# Links of pages that GitHub shows, too: as they are there, and as they are on the site.
FROM_README = {"](docs/": "](", "](CONTRIBUTING.md)": "](contributing.md)", "](CHANGELOG.md)": "](changelog.md)"}
TO_README = {"](../README.md": "](index.md"}


def read_readme_as_first_page(app: Any, name: str, source: list[str]) -> None:
    links = TO_README
    if name == "index":
        source[0], links = README.read_text() + source[0], FROM_README
    for there, here in links.items():
        source[0] = source[0].replace(there, here)


def formula(block: bool) -> Any:
    """Browsers draw MathML by themselves: the pages need no script and no network for their formulas."""

    def visit(writer: Any, node: nodes.math | nodes.math_block) -> None:
        try:
            writer.body.append(tex2mathml(node.astext(), as_block=block))
        except MathError as error:
            raise SphinxError(f"{node.source}:{node.line}: {error} in {node.astext()!r}") from error
        raise nodes.SkipNode

    return visit


def setup(app: Any) -> None:
    app.connect("source-read", read_readme_as_first_page)
    app.add_html_math_renderer("mathml", inline_renderers=(formula(False), None), block_renderers=(formula(True), None))
