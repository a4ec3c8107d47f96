"""Write Markdown around text of any origin, which is escaped once, when it is put into place."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from asyncdiff.foreign_text import LIMIT, visible

# HTML, links, code, emphasis, tables; _ within a word means nothing.
SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
# What begins a heading, a list, a quotation or a line across, at the start of a line only.
BLOCK = re.compile(r"\A(\s*)([#>]|[-+=](?=[\s=-]|\Z))|\A(\s*\d+)([.)])(?=\s|\Z)")


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def escape(text: object, limit: int = LIMIT) -> Markdown:
    """Return text as Markdown that shows exactly this text, in one line; Markdown is returned unchanged.

    Args:
        text: any text.
        limit: maximum number of its characters.

    Returns:
        Markdown without elements: neither HTML nor links, emphasis, code or columns.
    """
    if isinstance(text, Markdown):
        return text
    shown = BLOCK.sub(r"\1\3\\\2\4", SPECIAL.sub(r"\\\g<0>", visible(text, limit)))
    # As entities, since not every dialect knows backslashes before these.
    return Markdown(re.sub(r"&(?=#?\w+;)", "&amp;", shown).replace("<", "&lt;"))


def bold(text: object, limit: int = LIMIT) -> Markdown:
    """Return text in bold."""
    return Markdown(f"**{escape(text, limit)}**")


def code(text: object, limit: int = LIMIT) -> Markdown:
    """Return text as code; as plain text if it contains what code cannot show in a table, | or a backtick."""
    shown = visible(text, limit).strip()
    return escape(shown, limit) if not shown or set("|`") & set(shown) else Markdown(f"`{shown}`")


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markdown:
    """Return a Markdown table.

    Args:
        head: column headers.
        rows: one cell per column, row by row; text is escaped.

    Returns:
        Lines of the table, without a final line break.
    """
    lines = [f"| {' | '.join(map(escape, cells))} |" for cells in (head, *rows)]
    return Markdown("\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]))


def render_markdown(template: str, **facts: Any) -> str:
    """Return the Markdown of a Jinja template, in which every value is escaped.

    Args:
        template: text of the template.
        facts: values by name.
    """
    from jinja2 import Environment, StrictUndefined  # imported late, since only documents need it

    environment = Environment(finalize=escape, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(**facts)
