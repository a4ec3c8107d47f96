"""Draw the legend of the level figure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm
from matplotlib.patches import Rectangle

from asyncdiff.evaluation.figures.level_statistics import LevelStatistics
from asyncdiff.evaluation.figures.style import FAINT, KNOWN_COLOR, VERMILION, Sheet, format_percent

LEFT, LINE = 0.62, 0.17  # left margin and line height of the entries, in inches
Mark = Callable[[Axes], None]  # draws the symbol of a legend entry


@dataclass(frozen=True)
class Scale:
    """Color scale of the joint histograms, the same in all columns.

    Attributes:
        norm: logarithmic map from a share of the images to [0, 1].
        colors: colormap over [0, 1].
    """

    norm: LogNorm
    colors: Colormap


class Legend:
    """Legend with the title of the figure and entries that wrap at its width.

    Args:
        statistics: statistics of each column; the legend has entries only for symbols that appear in them.
        scale: color scale of the joint histograms.
        width: width of the figure, in inches.
    """

    def __init__(self, statistics: Sequence[LevelStatistics], scale: Scale, width: float):
        self.scale = scale
        self.title = f"Noise levels, {len(statistics[0].t)} maps" + (" each" if len(statistics) > 1 else "")
        entries: list[tuple[str, Mark]] = [
            ("noise, t = 1", lambda axes: _draw_box(axes, "white", FAINT)),
            ("clean, t = 0", lambda axes: _draw_box(axes, "black", "black")),
        ]
        if any(stats.known.any() for stats in statistics):
            entries.append(("known: clean, no loss", lambda axes: _draw_box(axes, KNOWN_COLOR, KNOWN_COLOR)))
        if any(stats.density is not None for stats in statistics):
            entries.append(("exact density", lambda axes: _draw_line(axes, VERMILION, "-")))
        entries.append(("largest sd possible", lambda axes: _draw_line(axes, FAINT, (0, (3, 2)))))
        low, high = format_percent(scale.norm.vmin or 0), format_percent(scale.norm.vmax or 0)
        entries.append((f"{low} to {high} of the images in a cell", self._draw_bar))
        self.lines = self._flow(entries, width)

    @property
    def height(self) -> float:
        """Height of the legend in inches."""
        return 0.42 + LINE * len(self.lines) + 0.15

    def draw(self, sheet: Sheet) -> None:
        """Draw the title and the entries."""
        sheet.text(LEFT, 0.12, self.title, fontsize=10)
        for number, line in enumerate(self.lines):
            for left, text, mark in line:
                top = 0.42 + LINE * number
                mark(sheet.axes(left, top, 0.2, 0.1))
                sheet.text(left + 0.26, top + 0.05, text, va="center", fontsize=7.5, color=FAINT)

    def _flow(self, entries: Iterable[tuple[str, Mark]], width: float) -> list[list[tuple[float, str, Mark]]]:
        """Wrap the entries into lines; return the left edge, text and symbol of each."""
        lines: list[list[tuple[float, str, Mark]]] = [[]]
        left = LEFT
        for text, mark in entries:
            entry_width = 0.26 + 0.06 * len(text) + 0.2
            if lines[-1] and left + entry_width > width:
                lines.append([])
                left = LEFT
            lines[-1].append((left, text, mark))
            left += entry_width
        return lines

    def _draw_bar(self, axes: Axes) -> None:
        axes.imshow(np.linspace(0, 1, 64)[None], cmap=self.scale.colors, aspect="auto")
        axes.set_axis_off()


def _draw_box(axes: Axes, color: str, edge: str) -> None:
    axes.add_patch(Rectangle((0.25, 0), 0.5, 1, facecolor=color, edgecolor=edge, linewidth=0.6, clip_on=False))
    axes.set_axis_off()


def _draw_line(axes: Axes, color: str, style: object) -> None:
    axes.plot([0, 1], [0.5, 0.5], color=color, linestyle=style, linewidth=1)
    axes.set_axis_off()
