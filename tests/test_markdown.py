"""Markdown around text of any origin: a parser finds exactly the elements that were meant, and the text itself."""

import html
import re
import time

import pytest

from asyncdiff.foreign_text import visible
from asyncdiff.markdown import Markdown, bold, code, escape, markdown_table, render_markdown

MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\0b\1<b>\0",
    "](javascript:alert(1))",
    "![x](http://example.com/x.png)",
    "[a][b]",
    "[a]: http://example.com",
    "a | b | c",
    "|---|",
    "`code`",
    "**bold** __bold__ *i* _i_ __init__ snake_case_name",
    "# heading",
    "- item",
    "1. item",
    "12) item",
    "> quote",
    "---",
    "===",
    "~~~",
    "```",
    "&lt;b&gt; &#60; & &amp;",
    "a\nb\n\n# c",
    "\x1b[31mred",
    "\u202eabc",
    "\\",
    "\\|",
    "\\\\<b>",
    "2026",
    "$\\frac{",
    "\"quoted\" 'single'",
    "    indented",
    "<http://example.com>",
]


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def shown(page: str) -> str:
    """Text of a page without its elements."""
    return html.unescape(re.sub(r"<[^>]*>", "", page)).strip()


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_a_paragraph_of_that_text(text):
    page = rendered(str(escape(text)).lstrip())
    assert re.fullmatch(r"<p>[^<]*</p>\n", page), page
    assert shown(page) == visible(text).strip()
    assert re.findall("<[^>]*>", rendered(bold(text.strip() or "x"))) == ["<p>", "<strong>", "</strong>", "</p>"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("wrap", [escape, code])
def test_a_cell_is_one_cell_with_that_text(text, wrap):
    page = rendered(markdown_table(["x", "y"], [[wrap(text), "z"], ["z", wrap(text)]]))
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert [shown(cell) for cell in cells] == [visible(text).strip(), "z", "z", visible(text).strip()]
    assert set(re.findall(r"<(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}


def test_text_is_escaped_once():
    assert escape(escape("a*b")) == escape("a*b") == "a\\*b"
    assert markdown_table(["*"], [[Markdown("**1**")]]) == "| \\* |\n|---|\n| **1** |"
    assert code("a`b") == "a\\`b"
    assert len(code("|" * 1000, 1000)) == 2000
    assert code("f(x=[1, 2], y='<z>')") == "`f(x=[1, 2], y='<z>')`"


def test_numbers_paths_and_names_stay_readable():
    for text in ("-1.5 ± 0.2", "runs/a_b/evaluation/frechet_x.json (a)", "1.25e-05", "FID ↓", "12.5"):
        assert escape(text) == text


def test_templates_escape_every_value():
    text = render_markdown(
        "# {{ name }}\n{% for x in xs %}{{ x }}{% endfor %}{{ raw }}\n", name="<b>*", xs="|", raw=code("*")
    )
    assert text == "# &lt;b>\\*\n\\|`*`\n"


@pytest.mark.parametrize("text", ["[" * 100_000, "`" * 100_001, "*a " * 50_000, "\x1b" * 100_000, "_" * 100_000])
def test_long_text_is_short_and_costs_little(text):
    start = time.process_time()
    assert len(escape(text)) < 3000
    assert len(rendered(escape(text))) < 10_000
    assert time.process_time() - start < 1
