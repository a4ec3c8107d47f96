"""Compare runs in a report with a table, its protocol and figures, as Markdown and as a single HTML page.

Names and settings come from files of any origin. They are kept as they are until the report is written, and escaped by
the functions and the template that write it.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
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
from asyncdiff.foreign_text import visible
from asyncdiff.markdown import Markdown, bold, code, escape, markdown_table

IMAGES_PER_ROW = 5  # in Markdown
OTHER_SEEDS = "One run of every variant; the others differ in --seed_everything and in their folder."
# Keys with these prefixes are irrelevant to a comparison.
HIDDEN_PREFIXES = ("trainer.logger", "trainer.callbacks", "trainer.default_root_dir", "model.seed", "data.seed")

MAX_KEYS = 40  # settings that are listed in a line
MAX_LINE = 5000  # characters of a line or a command


@dataclass(frozen=True)
class Span:
    """Part of a line of the report.

    Attributes:
        text: any text; it is escaped where it is written.
        mark: how it is set off: "bold" or "code", or not at all.
    """

    text: str
    mark: str = ""

    def markdown(self) -> Markdown:
        """Return the part as Markdown."""
        return {"bold": bold, "code": code}.get(self.mark, escape)(self.text, MAX_LINE)


Line = tuple[Span, ...]


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

    def rows(self) -> list[list[Line]]:
        """Return the cells of the table by row; the best mean in each column is bold."""
        groups = group_by_variant(self.runs)
        best = {}
        for metric in self.metrics:
            means = [
                mean_and_deviation(numbers)[0] for runs in groups.values() if (numbers := final_values(runs, metric))
            ]
            finite = list(filter(math.isfinite, means))
            best[metric.tag] = metric.best(finite) if len(means) > 1 and finite else None
        rows = []
        for variant, runs in groups.items():
            cells = [self._cell(final_values(runs, metric), best[metric.tag]) for metric in self.metrics]
            rows.append([_line(visible(variant)), _line(str(len(runs))), *cells])
        return rows

    def headers(self) -> list[str]:
        """Return the column headers of the table."""
        arrows = {"min": "↓", "max": "↑"}
        return ["", "runs", *(f"{metric.label} {arrows[metric.goal]}" for metric in self.metrics)]

    def notes(self) -> list[Line]:
        """Return the footnotes of the table: how the numbers were computed, and which runs are missing."""
        same, different = compare_settings(self.runs)
        differing = [key for key in different if not key.startswith(HIDDEN_PREFIXES)]
        known = {key: value for key, value in same.items() if key.startswith("software.") or key in PROTOCOL}
        lines = [_line("Mean ± standard deviation over runs of different seeds; the best mean of a column is bold.")]
        lines += [_line(f"Common to all: {_settings(known)}.")] if known else []
        lines += [_line(f"They differ in: {_listed(differing)}.")] if differing else []
        if unlike := [key for key in differing if key.startswith("software.") or key in PROTOCOL]:
            lines.append((NOT_THE_SAME, Span(f": {_listed(unlike)} differ between the runs of this table.")))
        for tag, (common, changed) in metric_protocols(self.runs, self.metrics).items():
            if common:
                lines.append(_line(f"{tag}: {_settings({k: v for k, v in common.items() if v is not None})}."))
            if changed:
                lines.append((NOT_THE_SAME, Span(f": {_listed(changed)} of {tag} differ between the runs.")))
        return [*lines, self._tags(), *(_line(f"Left out: {line}") for line in self.left_out)]

    def table(self) -> str:
        """Return the table in Markdown."""
        return markdown_table(self.headers(), [list(map(_markdown, row)) for row in self.rows()])

    def markdown(self) -> str:
        """Return the report as Markdown that links to the image files."""
        parts = [f"# {escape(self.title)}", self.table(), "\n".join(f"* {_markdown(note)}" for note in self.notes())]
        parts += [_markdown_image(image) for image in self.figures]
        for name, images in self.grids.items():
            rows = [images[first : first + IMAGES_PER_ROW] for first in range(0, len(images), IMAGES_PER_ROW)]
            parts += [f"## {escape(name)}", *map(_markdown_image_row, rows)]
        commands = [escape(line, MAX_LINE) for line in self._commands()]
        return "\n\n".join([*parts, "## Commands", OTHER_SEEDS, *commands]) + "\n"

    def page(self) -> str:
        """Return the report as a single HTML page with embedded images, from the template report.html."""
        from jinja2 import Environment, StrictUndefined  # imported late, as it is for model cards
        from markupsafe import Markup

        room = files("asyncdiff.ablation")
        style = room.joinpath("report.css").read_text()
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"visible": visible, "line": partial(visible, limit=MAX_LINE), "data_url": _data_url}
        return environment.from_string(room.joinpath("report.html").read_text()).render(
            report=self,
            commands=self._commands(),
            other_seeds=OTHER_SEEDS,
            style=Markup(style),  # a file of this package; the page allows no other style, and no script
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
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
                    "metrics": {metric.tag: _finite(run.last_value(metric)) for metric in self.metrics},
                }
                for run in self.runs
            ],
        }

    def _commands(self) -> list[str]:
        first = [runs[0].record for runs in group_by_variant(self.runs).values()]
        return [str(record["command"]) for record in first if "command" in record] or ["(runs of train.py)"]

    def _tags(self) -> Line:
        renamed = [metric for metric in self.metrics if metric.label != metric.tag]
        spans = [Span("Last values of the runs")]
        for metric in renamed:
            spans += [Span(f"{', ' if len(spans) > 1 else ': '}{metric.label} is "), Span(metric.tag, "code")]
        return (*spans, Span("."))

    @staticmethod
    def _cell(numbers: Sequence[float], best: float | None) -> Line:
        if not numbers:
            return ()
        mean, deviation = mean_and_deviation(numbers)
        value = Span(_number(mean, 4), "bold" if mean == best else "")
        return (value,) if deviation is None else (value, Span(f" ± {_number(deviation, 2)}"))


NOT_THE_SAME = Span("Not the same protocol", "bold")
PROTOCOL = ("data.class_path", "data.root", "data.size", "data.batch_size", "model.image_size", "trainer.max_steps")


def _number(value: float, digits: int) -> str:
    """Format a number with `digits` significant digits, or a large one as an integer without an exponent."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _finite(value: float | None) -> float | None:
    """Return a number that JSON can represent, or None."""
    return value if value is not None and math.isfinite(value) else None


def _line(text: str) -> Line:
    return (Span(text),)


def _listed(items: Sequence[str]) -> str:
    """Join settings by commas, the first of them if there are very many."""
    more = [f"{len(items) - MAX_KEYS} more"] if len(items) > MAX_KEYS else []
    return ", ".join([*(visible(item) for item in items[:MAX_KEYS]), *more])


def _settings(settings: Mapping[str, Any]) -> str:
    return _listed([f"{key} = {abbreviate(value)}" for key, value in settings.items()])


def _markdown(line: Line) -> Markdown:
    return Markdown("".join(span.markdown() for span in line))


def _markdown_image(image: ReportImage) -> Markdown:
    return Markdown(f"![{escape(image.caption)}]({image.file.name})")


def _markdown_image_row(images: Sequence[ReportImage]) -> Markdown:
    """Return a row of images as a Markdown table."""
    return markdown_table([image.caption for image in images], [list(map(_markdown_image, images))])


def _data_url(image: ReportImage) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.file.read_bytes()).decode()}"
