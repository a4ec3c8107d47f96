"""What the marks of the level figure mean."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm
from matplotlib.patches import Rectangle

from asyncdiff.evaluation.figures.level_statistics import Survey
from asyncdiff.evaluation.figures.style import FAINT, GIVEN, VERMILION, Sheet, percent

LEFT, LINE = 0.62, 0.17  # inches: the margin, and from one line of entries to the next
Mark = Callable[[Axes], None]  # draws the mark of an entry of the legend


@dataclass(frozen=True)
class Scale:
    """The colours of the joint histograms, the same in all columns.

    Attributes:
        norm: from a share of the images to [0, 1], on a logarithmic scale.
        colours: of these.
    """

    norm: LogNorm
    colours: Colormap


class Legend:
    """What the marks mean: entries that flow over the width of a figure, below its title.

    Args:
        surveys: the columns; only marks that they need are explained.
        scale: of the joint histograms.
        width: of the figure, in inches.
    """

    def __init__(self, surveys: Sequence[Survey], scale: Scale, width: float):
        self.scale = scale
        self.title = f"Noise levels, {len(surveys[0].t)} maps" + (" each" if len(surveys) > 1 else "")
        entries: list[tuple[str, Mark]] = [
            ("noise, t = 1", lambda axes: _box(axes, "white", FAINT)),
            ("clean, t = 0", lambda axes: _box(axes, "black", "black")),
        ]
        if any(survey.known.any() for survey in surveys):
            entries.append(("given clean, no loss", lambda axes: _box(axes, GIVEN, GIVEN)))
        if any(survey.density is not None for survey in surveys):
            entries.append(("exact density", lambda axes: _line(axes, VERMILION, "-")))
        entries.append(("largest sd possible", lambda axes: _line(axes, FAINT, (0, (3, 2)))))
        low, high = percent(scale.norm.vmin or 0), percent(scale.norm.vmax or 0)
        entries.append((f"{low} to {high} of the images in a cell", self._bar))
        self.lines = self._flow(entries, width)

    @property
    def height(self) -> float:
        """Inches down to the first band."""
        return 0.42 + LINE * len(self.lines) + 0.15

    def draw(self, sheet: Sheet) -> None:
        """Title and entries."""
        sheet.text(LEFT, 0.12, self.title, fontsize=10)
        for number, line in enumerate(self.lines):
            for left, text, mark in line:
                top = 0.42 + LINE * number
                mark(sheet.axes(left, top, 0.2, 0.1))
                sheet.text(left + 0.26, top + 0.05, text, va="center", fontsize=7.5, color=FAINT)

    def _flow(self, entries: Iterable[tuple[str, Mark]], width: float) -> list[list[tuple[float, str, Mark]]]:
        """Lines of entries with their left edges."""
        lines: list[list[tuple[float, str, Mark]]] = [[]]
        left = LEFT
        for text, mark in entries:
            needed = 0.26 + 0.06 * len(text) + 0.2
            if lines[-1] and left + needed > width:
                lines.append([])
                left = LEFT
            lines[-1].append((left, text, mark))
            left += needed
        return lines

    def _bar(self, axes: Axes) -> None:
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=self.scale.colours, aspect="auto")
        axes.set_axis_off()


def _box(axes: Axes, colour: str, edge: str) -> None:
    axes.add_patch(Rectangle((0.25, 0), 0.5, 1, facecolor=colour, edgecolor=edge, linewidth=0.6, clip_on=False))
    axes.set_axis_off()


def _line(axes: Axes, colour: str, style: object) -> None:
    axes.plot([0, 1], [0.5, 0.5], color=colour, linestyle=style, linewidth=1)
    axes.set_axis_off()
