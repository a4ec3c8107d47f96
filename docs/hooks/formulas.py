r"""Formulas in LaTeX, as code hosts draw them, become MathML, which browsers draw without a script.

A fence of the language `math` is a formula on lines of its own, and $`...`$ is one within a line.
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
    """Both are read on every page."""
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "formula", "format": displayed}]
    }
    config.markdown_extensions.append(Formulas())
    return config


def mathml(latex: str, *, display: str) -> str:
    """A formula as an element `math`; ValueError for a command that is not known."""
    ElementTree.register_namespace("", MATHML)
    try:
        root = ElementTree.fromstring(convert(" ".join(latex.split()), display=display))
    except Exception as error:  # the converter raises many
        raise ValueError(f"formulas must be LaTeX, got {latex}: {error!r}") from error
    for element in root.iter():
        if element.text and (wrong := {"\\", "&"} & {*element.text}):  # what is not known stays as it is
            raise ValueError(f"formulas must have known commands, got {element.text} ({wrong}) in {latex}")
    return ElementTree.tostring(root, encoding="unicode")


def displayed(source: str, language: str, class_name: str, options: Any, md: Markdown, **more: Any) -> str:
    """A fence as a block that scrolls where it does not fit."""
    try:
        return f'<div class="{class_name}">{mathml(source, display="block")}</div>'
    except ValueError as error:  # another exception would leave the fence as it is, without a word
        raise SuperFencesException(str(error)) from error


class Formulas(Extension):
    """Reads formulas within lines."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Before code, which the rest of such a formula is."""
        md.inlinePatterns.register(Inline(INLINE, md), "formula", 195)


class Inline(InlineProcessor):
    """A formula within a line."""

    def handleMatch(self, m, data):  # type: ignore[no-untyped-def,override]
        """The place of what is put in at the end."""
        return self.md.htmlStash.store(mathml(m[1], display="inline")), m.start(0), m.end(0)
