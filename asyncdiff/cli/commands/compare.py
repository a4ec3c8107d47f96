"""`python -m asyncdiff compare CARD.json CARD.json ...`: result cards side by side, with different protocols marked."""

import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from asyncdiff.cli.commands.shared.options import command_parser
from asyncdiff.cli.commands.shared.write_results import number
from asyncdiff.evaluation.result_card import (
    SOFTWARE_KEYS,
    SUBJECT_KEYS,
    abbreviate,
    differences,
    read_card,
    value_at,
)

DESCRIPTION = """Print the result cards of `evaluate` as one table with a row each, to compare checkpoints.

Rows that were measured with another protocol than the first row are marked, and the differences are listed below the
table: such numbers are not comparable."""
SHOWN = 8  # differing keys listed per mark


def main(argv: Sequence[str]) -> None:
    """Read the cards and print the table."""
    parser = command_parser("compare", DESCRIPTION)
    parser.add_argument("cards", nargs="+", type=Path, help="result cards of evaluate, RUN/evaluation/NAME.json")
    options = parser.parse_args(argv)
    if len(set(options.cards)) < len(options.cards):
        raise ValueError(f"cards must differ, got {options.cards[0]} and others twice: name each once")
    print(comparison({str(file): read_card(file) for file in options.cards}))


def comparison(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Compare result cards, of which the first one is the reference.

    Args:
        cards: result cards of format 1, by the names of their rows.

    Returns:
        Markdown table with a row per card and a column per metric, followed by the meaning of its marks.
    """
    first = next(iter(cards))
    names = list(dict.fromkeys(name for card in cards.values() for name in card["metrics"]))
    marks: dict[str, str] = {}
    letters = _letters()
    lines = [f"| card | step | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row, card in cards.items():
        note = _protocol_differences(first, cards[first]["protocol"], card["protocol"])
        mark = ""
        if note:
            mark = marks.setdefault(note, "") or next(letters)
            marks[note] = mark
        cells = " | ".join(_cell(card, name, mark) for name in names)
        lines.append(f"| {row}{f' ({mark})' if mark else ''} | {card['protocol'].get('step', '')} | {cells} |")
    notes = [f"({mark}) {note}: not comparable" for note, mark in marks.items()]
    return "\n".join([*lines, "", *notes, *_software_differences(cards)]).rstrip()


def _protocol_differences(first: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the differences of two protocols that change the meaning of the numbers; empty if there are none."""
    keys = [key for key in differences(before, now) if key.split(".")[0] not in (*SUBJECT_KEYS, *SOFTWARE_KEYS)]
    listed = [
        f"{key} ({abbreviate(value_at(now, key))} instead of {abbreviate(value_at(before, key))})"
        for key in keys[:SHOWN]
    ]
    more = [f"{len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return f"protocol differs from {first} in {', '.join([*listed, *more])}" if keys else ""


def _software_differences(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe differences of hardware and software, which should not change the numbers."""
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
    deviation = card.get("deviations", {}).get(name)
    return number(value) + ("" if deviation is None else f" ± {deviation:.2g}") + (f" ({mark})" if mark else "")


def _letters() -> Iterator[str]:
    """Yield a to z, then a2 to z2 and so on."""
    return (letter + (str(n) if n > 1 else "") for n in count(1) for letter in string.ascii_lowercase)
