"""What runs say beside each other: a table with its protocol, as Markdown and as one HTML page."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncdiff.ablation.collect import (
    FoundRun,
    by_variant,
    mean_and_deviation,
    measurements,
    shared_and_different,
    values,
)
from asyncdiff.ablation.config import Metric

BESIDE = 5  # pictures in a row of Markdown
OTHER_SEEDS = "One run of every variant; the others differ in --seed_everything and in their folder."
SHOWN = 40  # characters of a setting in the protocol
# Keys that tell nothing about a comparison, by their beginnings or ends.
HIDDEN = ("trainer.logger", "trainer.callbacks", "trainer.default_root_dir", "model.seed", "data.seed")

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; }
figcaption { font-size: 13px; opacity: .75; }
img { max-width: 100%; background: white; }
.scroll { overflow-x: auto; }
details { margin: 1rem 0; } code { font-size: 13px; }
""".strip()


@dataclass(frozen=True)
class Picture:
    """A file beside the report with the line below it."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything that is told.

    Attributes:
        title: of the page.
        runs: what is compared.
        metrics: in which numbers.
        left_out: a line about every run that could not be compared.
        figures: plots.
        grids: pictures that variants drew, by the name of the picture.
    """

    title: str
    runs: Sequence[FoundRun]
    metrics: Sequence[Metric]
    left_out: Sequence[str]
    figures: Sequence[Picture]
    grids: Mapping[str, Sequence[Picture]]

    def rows(self) -> list[list[str]]:
        """The cells of the table; the best mean of every column is bold."""
        groups = by_variant(self.runs)
        best = {}
        for metric in self.metrics:
            means = [mean_and_deviation(found)[0] for runs in groups.values() if (found := values(runs, metric))]
            best[metric.tag] = metric.better(means) if len(means) > 1 else None
        rows = []
        for variant, runs in groups.items():
            cells = [self._cell(values(runs, metric), best[metric.tag]) for metric in self.metrics]
            rows.append([variant, str(len(runs)), *cells])
        return rows

    def heads(self) -> list[str]:
        """Of the table's columns."""
        arrows = {"min": "↓", "max": "↑"}
        return ["", "runs", *(f"{metric.label} {arrows[metric.goal]}" for metric in self.metrics)]

    def notes(self) -> list[str]:
        """What the numbers are made of: the footnotes of the table."""
        same, different = shared_and_different(self.runs)
        differ = [key for key in different if not key.startswith(HIDDEN)]
        known = {key: value for key, value in same.items() if key.startswith("software.") or key in PROTOCOL}
        lines = ["Mean ± standard deviation over runs of different seeds; the best mean of a column is bold."]
        lines += [f"Common to all: {', '.join(f'{k} = {_short(v)}' for k, v in known.items())}."] if known else []
        lines += [f"They differ in: {', '.join(differ)}."] if differ else []
        if unlike := [key for key in differ if key.startswith("software.") or key in PROTOCOL]:
            lines.append(f"**Not the same protocol**: {', '.join(unlike)} differ between the runs of this table.")
        for tag, (common, apart) in measurements(self.runs, self.metrics).items():
            if common:
                lines.append(f"{tag}: {', '.join(f'{k} = {_short(v)}' for k, v in common.items() if v is not None)}.")
            if apart:
                lines.append(f"**Not the same protocol**: {', '.join(apart)} of {tag} differ between the runs.")
        tags = [f"{metric.label} is `{metric.tag}`" for metric in self.metrics if metric.label != metric.tag]
        lines.append(f"Last values of the runs{': ' if tags else ''}{', '.join(tags)}.")
        return [*lines, *(f"Left out: {line}" for line in self.left_out)]

    def markdown(self) -> str:
        """The report with links to its pictures."""
        table = [f"| {' | '.join(self.heads())} |", "|---" * (len(self.metrics) + 2) + "|"]
        table += [f"| {' | '.join(row)} |" for row in self.rows()]
        parts = [f"# {self.title}", "\n".join(table), "\n".join(f"* {note}" for note in self.notes())]
        parts += [f"![{picture.caption}]({picture.file.name})" for picture in self.figures]
        for name, pictures in self.grids.items():
            rows = [pictures[first : first + BESIDE] for first in range(0, len(pictures), BESIDE)]
            parts += [f"## {name}", *map(_beside, rows)]
        return "\n\n".join([*parts, "## Commands", OTHER_SEEDS, *self._commands()]) + "\n"

    def page(self) -> str:
        """The report as one HTML file, pictures included."""
        body = [f"<h1>{html.escape(self.title)}</h1>", f'<div class="scroll">{self._table()}</div>']
        body += ["<ul>", *(f"<li>{_marked(note)}</li>" for note in self.notes()), "</ul>"]
        body += [_figure(picture) for picture in self.figures]
        for name, pictures in self.grids.items():
            body += [f"<h2>{html.escape(name)}</h2>", *(_figure(picture) for picture in pictures)]
        commands = f"<p>{OTHER_SEEDS}</p>"
        commands += "".join(f"<p><code>{html.escape(line)}</code></p>" for line in self._commands())
        body.append(f"<details><summary>Commands</summary>{commands}</details>")
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
        )

    def card(self) -> dict[str, Any]:
        """The numbers of every run, as plain containers."""
        same, different = shared_and_different(self.runs)
        runs = [
            {
                "folder": str(run.folder),
                "variant": run.variant,
                "seed": run.seed,
                "metrics": {metric.tag: run.last(metric) for metric in self.metrics},
            }
            for run in self.runs
        ]
        protocols = {
            tag: {"common": common, "different": apart}
            for tag, (common, apart) in measurements(self.runs, self.metrics).items()
        }
        return {
            "common": same,
            "different": different,
            "protocols": protocols,
            "left_out": list(self.left_out),
            "runs": runs,
        }

    def _commands(self) -> list[str]:
        first = [runs[0].record for runs in by_variant(self.runs).values()]
        return [record["command"] for record in first if "command" in record] or ["(runs of train.py)"]

    def _table(self) -> str:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.heads())
        rows = ["<tr>" + "".join(f"<td>{_marked(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()]
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>"

    @staticmethod
    def _cell(found: Sequence[float], best: float | None) -> str:
        if not found:
            return ""
        mean, deviation = mean_and_deviation(found)
        text = f"**{_number(mean, 4)}**" if mean == best else _number(mean, 4)
        return text if deviation is None else f"{text} ± {_number(deviation, 2)}"


PROTOCOL = ("data.class_path", "data.root", "data.size", "data.batch_size", "model.image_size", "trainer.max_steps")


def _number(value: float, digits: int) -> str:
    """So many significant digits; large numbers whole, as nobody compares exponents."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _beside(pictures: Sequence[Picture]) -> str:
    """A row of pictures as a table of Markdown."""
    heads = " | ".join(picture.caption for picture in pictures)
    links = " | ".join(f"![{picture.caption}]({picture.file.name})" for picture in pictures)
    return f"| {heads} |\n{'|---' * len(pictures)}|\n| {links} |"


def _figure(picture: Picture) -> str:
    encoded = base64.b64encode(picture.file.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(picture.caption)}">'
    return f"<figure>{image}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"


def _marked(text: str) -> str:
    """Escaped, with what is bold or code in Markdown."""
    for mark, tag in (("**", "b"), ("`", "code")):
        parts = text.split(mark) if mark == "**" else text.split("`")
        text = "".join(part if at % 2 == 0 else f"\0{tag}\1{part}\0/{tag}\1" for at, part in enumerate(parts))
    return html.escape(text).replace("\0", "<").replace("\1", ">")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
