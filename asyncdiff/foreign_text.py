"""Text from files of others, made safe to print, to draw and to name files after. Imports no torch."""

import re
import shlex
import unicodedata
from collections.abc import Iterable

LIMIT = 300  # characters of one text; longer ones are abbreviated
MAX_NOTE = 2000  # characters of a line with paths
BASH = {ord(letter): rf"\{letter}" for letter in "\\'"}  # escapes within $'...'
NAME_LIMIT = 60  # characters of a file name, at most 4 bytes each of the 255 that file systems allow


def visible(text: object, limit: int = LIMIT) -> str:
    r"""Return a text in one line, with its middle left out beyond `limit` characters, in which nothing is hidden.

    Characters that move the cursor, color a terminal, break the line or turn the direction of writing are replaced by
    their escapes, such as \x1b and \u202e, as in Python's `repr`; spaces of any width remain.
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[len(text) - (limit - 1) // 2 :]}"
    return _escaped(text)


def visible_lines(text: object, limit: int = 20 * LIMIT) -> str:
    """Return a text of several lines, of at most `limit` characters each, with `visible` lines."""
    return "\n".join(visible(line, limit) for line in str(text).split("\n"))


def shell_line(argv: Iterable[str]) -> str:
    r"""Return a command for a shell in one line; hidden characters are written as $'\n' and the like, as in Bash."""
    return " ".join(
        shlex.quote(part) if part.isprintable() else f"$'{_escaped(part.translate(BASH))}'" for part in argv
    )


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a different file name for each different text: letters, digits and . , + = - remain, the others are _.

    Names of the same letters in upper and lower case are different, too, also where the file system ignores case.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        stem = re.sub(r"[^\w.,+=-]", "_", name[:NAME_LIMIT]).lstrip(".") or "_"
        number, free = 1, stem
        while free.casefold() in taken:
            number += 1
            free = f"{stem}-{number}"
        taken.add(free.casefold())
        chosen[name] = free
    return chosen


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if _is_visible(letter) else letter.encode("unicode_escape").decode() for letter in text)


def _is_visible(letter: str) -> bool:
    """Return whether a terminal shows a letter; Zs are spaces, also those in names of macOS's screenshots."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
