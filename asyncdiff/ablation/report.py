"""Compare runs in a report with a table, its protocol and figures, as Markdown and as a single HTML page."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncdiff.ablation.collect import (
    TrainingRun,
    compare_settings,
    final_values,
    group_by_variant,
    mean_and_deviation,
    metric_protocols,
)
from asyncdiff.ablation.config import Metric
from asyncdiff.checkpoints.compare import abbreviate
from asyncdiff.markdown import markdown_table

IMAGES_PER_ROW = 5  # in Markdown
OTHER_SEEDS = "One run of every variant; the others differ in --seed_everything and in their folder."
# Keys with these prefixes are irrelevant to a comparison.
HIDDEN_PREFIXES = ("trainer.logger", "trainer.callbacks", "trainer.default_root_dir", "model.seed", "data.seed")

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
class ReportImage:
    """Image file next to the report, with its caption."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Report:
    """Content of a report, with methods that format it.

    Attributes:
        title: title of the page.
        runs: runs to compare.
        metrics: metrics to compare.
        left_out: one line about each run that cannot be compared.
        figures: image files with plots.
        grids: image files with samples of each variant, by the name of the grid.
    """

    title: str
    runs: Sequence[TrainingRun]
    metrics: Sequence[Metric]
    left_out: Sequence[str]
    figures: Sequence[ReportImage]
    grids: Mapping[str, Sequence[ReportImage]]

    def rows(self) -> list[list[str]]:
        """Return the cells of the table by row; the best mean in each column is bold."""
        groups = group_by_variant(self.runs)
        best = {}
        for metric in self.metrics:
            means = [
                mean_and_deviation(numbers)[0] for runs in groups.values() if (numbers := final_values(runs, metric))
            ]
            best[metric.tag] = metric.best(means) if len(means) > 1 else None
        rows = []
        for variant, runs in groups.items():
            cells = [self._cell(final_values(runs, metric), best[metric.tag]) for metric in self.metrics]
            rows.append([variant, str(len(runs)), *cells])
        return rows

    def headers(self) -> list[str]:
        """Return the column headers of the table."""
        arrows = {"min": "↓", "max": "↑"}
        return ["", "runs", *(f"{metric.label} {arrows[metric.goal]}" for metric in self.metrics)]

    def notes(self) -> list[str]:
        """Return the footnotes of the table: how the numbers were computed, and which runs are missing."""
        same, different = compare_settings(self.runs)
        differing = [key for key in different if not key.startswith(HIDDEN_PREFIXES)]
        known = {key: value for key, value in same.items() if key.startswith("software.") or key in PROTOCOL}
        lines = ["Mean ± standard deviation over runs of different seeds; the best mean of a column is bold."]
        lines += [f"Common to all: {', '.join(f'{k} = {abbreviate(v)}' for k, v in known.items())}."] if known else []
        lines += [f"They differ in: {', '.join(differing)}."] if differing else []
        if unlike := [key for key in differing if key.startswith("software.") or key in PROTOCOL]:
            lines.append(f"**Not the same protocol**: {', '.join(unlike)} differ between the runs of this table.")
        for tag, (common, changed) in metric_protocols(self.runs, self.metrics).items():
            if common:
                lines.append(
                    f"{tag}: {', '.join(f'{k} = {abbreviate(v)}' for k, v in common.items() if v is not None)}."
                )
            if changed:
                lines.append(f"**Not the same protocol**: {', '.join(changed)} of {tag} differ between the runs.")
        tags = [f"{metric.label} is `{metric.tag}`" for metric in self.metrics if metric.label != metric.tag]
        lines.append(f"Last values of the runs{': ' if tags else ''}{', '.join(tags)}.")
        return [*lines, *(f"Left out: {line}" for line in self.left_out)]

    def table(self) -> str:
        """Return the table in Markdown."""
        return markdown_table(self.headers(), self.rows())

    def markdown(self) -> str:
        """Return the report as Markdown that links to the image files."""
        parts = [f"# {self.title}", self.table(), "\n".join(f"* {note}" for note in self.notes())]
        parts += [f"![{image.caption}]({image.file.name})" for image in self.figures]
        for name, images in self.grids.items():
            rows = [images[first : first + IMAGES_PER_ROW] for first in range(0, len(images), IMAGES_PER_ROW)]
            parts += [f"## {name}", *map(_markdown_image_row, rows)]
        return "\n\n".join([*parts, "## Commands", OTHER_SEEDS, *self._commands()]) + "\n"

    def page(self) -> str:
        """Return the report as a single HTML page with embedded images."""
        body = [f"<h1>{html.escape(self.title)}</h1>", f'<div class="scroll">{self._html_table()}</div>']
        body += ["<ul>", *(f"<li>{_to_html(note)}</li>" for note in self.notes()), "</ul>"]
        body += [_html_figure(image) for image in self.figures]
        for name, images in self.grids.items():
            body += [f"<h2>{html.escape(name)}</h2>", *(_html_figure(image) for image in images)]
        commands = f"<p>{OTHER_SEEDS}</p>"
        commands += "".join(f"<p><code>{html.escape(line)}</code></p>" for line in self._commands())
        body.append(f"<details><summary>Commands</summary>{commands}</details>")
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
        )

    def card(self) -> dict[str, Any]:
        """Return the numbers of each run and the protocol as plain dicts and lists, for a JSON file."""
        same, different = compare_settings(self.runs)
        protocols = metric_protocols(self.runs, self.metrics)
        return {
            "common": same,
            "different": different,
            "protocols": {
                tag: {"common": common, "different": changed} for tag, (common, changed) in protocols.items()
            },
            "left_out": list(self.left_out),
            "runs": [
                {
                    "folder": str(run.folder),
                    "variant": run.variant,
                    "seed": run.seed,
                    "metrics": {metric.tag: run.last_value(metric) for metric in self.metrics},
                }
                for run in self.runs
            ],
        }

    def _commands(self) -> list[str]:
        first = [runs[0].record for runs in group_by_variant(self.runs).values()]
        return [record["command"] for record in first if "command" in record] or ["(runs of train.py)"]

    def _html_table(self) -> str:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.headers())
        rows = ["<tr>" + "".join(f"<td>{_to_html(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()]
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>"

    @staticmethod
    def _cell(numbers: Sequence[float], best: float | None) -> str:
        if not numbers:
            return ""
        mean, deviation = mean_and_deviation(numbers)
        text = f"**{_number(mean, 4)}**" if mean == best else _number(mean, 4)
        return text if deviation is None else f"{text} ± {_number(deviation, 2)}"


PROTOCOL = ("data.class_path", "data.root", "data.size", "data.batch_size", "model.image_size", "trainer.max_steps")


def _number(value: float, digits: int) -> str:
    """Format a number with `digits` significant digits, or a large one as an integer without an exponent."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _markdown_image_row(images: Sequence[ReportImage]) -> str:
    """Return a row of images as a Markdown table."""
    links = [f"![{image.caption}]({image.file.name})" for image in images]
    return markdown_table([image.caption for image in images], [links])


def _html_figure(image: ReportImage) -> str:
    encoded = base64.b64encode(image.file.read_bytes()).decode()
    element = f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(image.caption)}">'
    return f"<figure>{element}<figcaption>{html.escape(image.caption)}</figcaption></figure>"


def _to_html(text: str) -> str:
    """Escape text for HTML and convert Markdown's bold and code marks to tags."""
    for mark, tag in (("**", "b"), ("`", "code")):
        parts = text.split(mark)
        text = "".join(part if i % 2 == 0 else f"\0{tag}\1{part}\0/{tag}\1" for i, part in enumerate(parts))
    return html.escape(text).replace("\0", "<").replace("\1", ">")
