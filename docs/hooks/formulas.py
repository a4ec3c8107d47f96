r"""Convert LaTeX formulas, in the syntax of code hosts, to MathML, which browsers render without a script.

A fence of the language `math` is a displayed formula, and $`...`$ is an inline formula.
"""

from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from pymdownx.superfences import SuperFencesException

INLINE = r"\$`([^`]+)`\$"
MATHML = "http://www.w3.org/1998/Math/MathML"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Register both kinds of formulas."""
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "formula", "format": display_formula}]
    }
    config.markdown_extensions.append(FormulaExtension())
    return config


def mathml(latex: str, *, display: str) -> str:
    """Return the formula as a `math` element; raise ValueError for an unknown command."""
    ElementTree.register_namespace("", MATHML)
    try:
        root = ElementTree.fromstring(convert(" ".join(latex.split()), display=display))
    except Exception as error:  # the converter raises many types
        raise ValueError(f"formulas must be LaTeX, got {latex}: {error!r}") from error
    for element in root.iter():
        if element.text and (wrong := {"\\", "&"} & {*element.text}):  # the converter copies unknown commands
            raise ValueError(f"formulas must have known commands, got {element.text} ({wrong}) in {latex}")
    return ElementTree.tostring(root, encoding="unicode")


def display_formula(source: str, language: str, class_name: str, options: Any, md: Markdown, **more: Any) -> str:
    """Return a fence as a block that scrolls if it is too wide."""
    try:
        return f'<div class="{class_name}">{mathml(source, display="block")}</div>'
    except ValueError as error:  # any other exception would silently keep the fence
        raise SuperFencesException(str(error)) from error


class FormulaExtension(Extension):
    """Markdown extension for inline formulas."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the pattern before that of inline code, which would match the backticks."""
        md.inlinePatterns.register(InlineFormula(INLINE, md), "formula", 195)


class InlineFormula(InlineProcessor):
    """Inline formula."""

    def handleMatch(self, m, data):  # type: ignore[no-untyped-def,override]
        """Return a placeholder for the formula, which Markdown fills in at the end."""
        return self.md.htmlStash.store(mathml(m[1], display="inline")), m.start(0), m.end(0)
