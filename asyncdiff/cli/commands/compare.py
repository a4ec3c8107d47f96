"""`python -m asyncdiff compare CARD.json CARD.json ...`: compare result cards in one table."""

import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints.compare import abbreviate, differences, value_at
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options
from asyncdiff.evaluation.result_card import SOFTWARE_KEYS, SUBJECT_KEYS, format_number, read_card
from asyncdiff.foreign_text import visible
from asyncdiff.markdown import markdown_table

DESCRIPTION = """Print result cards of `evaluate` as one table with one row per card, to compare checkpoints.

Rows whose protocol differs from that of the first row are marked, because their numbers are not comparable; the
differences are listed below the table."""
MAX_DIFFERENCES = 8  # keys listed per mark


def main(argv: Sequence[str]) -> None:
    """Read the cards and print the table."""
    options = parse_options("compare", DESCRIPTION, _declare, argv)
    if repeated := [str(file) for file, times in Counter(options.cards).items() if times > 1]:
        raise ValueError(f"cards must differ, got {', '.join(repeated)} more than once: list each card once")
    print(comparison({str(file): read_card(file) for file in options.cards}))


def _declare(parser: CommandParser) -> None:
    parser.add_argument(
        "cards", nargs="+", type=Path, help="result cards written by evaluate: RUN/evaluation/NAME.json"
    )


def comparison(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Compare result cards with the first one.

    Args:
        cards: result cards (format 1), by row name.

    Returns:
        Markdown table with one row per card and one column per metric, followed by an explanation of its marks.
    """
    first = next(iter(cards))
    names = list(dict.fromkeys(name for card in cards.values() for name in card["metrics"]))
    marks: dict[str, str] = {}
    letters = _letters()
    rows = []
    for row, card in cards.items():
        note = _protocol_differences(first, cards[first]["protocol"], card["protocol"])
        mark = ""
        if note:
            mark = marks.setdefault(note, "") or next(letters)
            marks[note] = mark
        step = str(card["protocol"].get("step", ""))
        rows.append([f"{row} ({mark})" if mark else row, step, *(_cell(card, name, mark) for name in names)])
    notes = [f"({mark}) {note}: not comparable" for note, mark in marks.items()]
    table = markdown_table(["card", "step", *names], rows)
    return "\n".join([table, "", *(visible(note, 2000) for note in [*notes, *_software_differences(cards)])]).rstrip()


def _protocol_differences(first: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the differences between two protocols that change the meaning of the numbers; empty if none do."""
    keys = [key for key in differences(before, now) if key.split(".")[0] not in (*SUBJECT_KEYS, *SOFTWARE_KEYS)]
    listed = [
        f"{key} ({abbreviate(value_at(now, key))} instead of {abbreviate(value_at(before, key))})"
        for key in keys[:MAX_DIFFERENCES]
    ]
    more = [f"{len(keys) - MAX_DIFFERENCES} more"] if len(keys) > MAX_DIFFERENCES else []
    return f"protocol differs from {first} in {', '.join([*listed, *more])}" if keys else ""


def _software_differences(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe differences in hardware and software, which should not change the numbers."""
    lines = []
    for key in SOFTWARE_KEYS:
        values = list(dict.fromkeys(abbreviate(card["protocol"].get(key)) for card in cards.values()))
        if len(values) > 1:
            lines.append(f"{key}: {', '.join(values)}; should make no difference beyond rounding")
    return lines


def _cell(card: Mapping[str, Any], name: str, mark: str) -> str:
    value = card["metrics"].get(name)
    if not isinstance(value, (int, float)):
        return ""
    deviation = value_at(card.get("deviations"), name)
    spread = f" ± {deviation:.2g}" if isinstance(deviation, (int, float)) else ""
    return format_number(value) + spread + (f" ({mark})" if mark else "")


def _letters() -> Iterator[str]:
    """Yield a to z, then a2 to z2 and so on."""
    return (letter + (str(n) if n > 1 else "") for n in count(1) for letter in string.ascii_lowercase)
