"""`python -m asyncdiff compare CARD.json CARD.json ...`: numbers side by side, unlike ones marked."""

import string
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from asyncdiff.cli.commands.options import command_parser
from asyncdiff.cli.commands.write_results import number
from asyncdiff.evaluation.result_card import COMPARED, SOFTWARE, differences, read_card, told, value_at

DESCRIPTION = """Cards of `evaluate` as one table, a row each.

What is compared is checkpoints. A row whose numbers were measured in another way than the first row's has a mark, and
under the table stands in what they differ: such numbers are not to be compared."""
SHOWN = 8  # keys that are listed of one difference


def main(args: Sequence[str]) -> None:
    """Read the cards and print the table."""
    parser = command_parser("compare", DESCRIPTION)
    parser.add_argument("cards", nargs="+", type=Path, help="files that evaluate wrote, RUN/evaluation/NAME.json")
    options = parser.parse_args(args)
    if len(set(options.cards)) < len(options.cards):
        raise ValueError(f"cards must differ, got {options.cards[0]} and others twice: name each once")
    print(comparison({str(file): read_card(file) for file in options.cards}))


def comparison(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row per card, a column per number, marks, and what they stand for.

    Args:
        cards: of format 1, by the names of their rows.
    """
    first = next(iter(cards))
    names = list(dict.fromkeys(name for card in cards.values() for name in card["metrics"]))
    marks: dict[str, str] = {}
    letters = _letters()
    lines = [f"| card | step | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row, card in cards.items():
        line = _unlike(first, cards[first]["protocol"], card["protocol"])
        mark = ""
        if line:
            mark = marks.setdefault(line, "") or next(letters)
            marks[line] = mark
        cells = " | ".join(_cell(card, name, mark) for name in names)
        lines.append(f"| {row}{f' ({mark})' if mark else ''} | {card['protocol'].get('step', '')} | {cells} |")
    notes = [f"({mark}) {line}: not to be compared" for line, mark in marks.items()]
    return "\n".join([*lines, "", *notes, *_software(cards)]).rstrip()


def _unlike(first: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two protocols differ that changes what the numbers mean; empty where in nothing."""
    keys = [key for key in differences(before, now) if key.split(".")[0] not in (*COMPARED, *SOFTWARE)]
    listed = [f"{key} ({told(value_at(now, key))} instead of {told(value_at(before, key))})" for key in keys[:SHOWN]]
    more = [f"{len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return f"measured unlike {first} in {', '.join([*listed, *more])}" if keys else ""


def _software(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines on what ought to make no difference, where it differs."""
    lines = []
    for key in SOFTWARE:
        values = list(dict.fromkeys(told(card["protocol"].get(key)) for card in cards.values()))
        if len(values) > 1:
            lines.append(f"{key}: {', '.join(values)}; ought to make no difference beyond rounding")
    return lines


def _cell(card: Mapping[str, Any], name: str, mark: str) -> str:
    value = card["metrics"].get(name)
    if not isinstance(value, (int, float)):
        return ""
    deviation = card.get("deviations", {}).get(name)
    return number(value) + ("" if deviation is None else f" ± {deviation:.2g}") + (f" ({mark})" if mark else "")


def _letters() -> Any:
    """a to z, then a2 and so on."""
    return (letter + (str(n) if n > 1 else "") for n in count(1) for letter in string.ascii_lowercase)
