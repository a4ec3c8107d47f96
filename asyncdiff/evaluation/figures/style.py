"""Common style of all plots: a few colors distinguishable with color blindness (Okabe & Ito), and small type."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asyncdiff.checkpoints.atomic_files import open_atomic
from asyncdiff.foreign_text import visible

INK, FAINT, HAIR = "#222222", "#6e6e6e", "#c9c9c9"
BLUE, VERMILION, ORANGE = "#0072b2", "#d55e00", "#e69f00"
PALE_BLUE = "#a9cfe5"
KNOWN_COLOR, KNOWN_INK = ORANGE, "#9c6a00"  # color of known patches, and of text about them
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
}


def plot_style() -> Any:
    """Return a context manager with matplotlib settings, in which to create and render plots."""
    return rc_context(STYLE)


def label(name: str, limit: int = 40) -> str:
    """Return a name of any origin as a label: one line without formulas, which a legend never leaves out."""
    shown = visible(name, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


class Sheet:
    """White figure with axes placed in inches from the upper left corner, without pyplot.

    Args:
        width: width in inches.
        height: height in inches.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes that fill the given box, in inches."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        """Add text with its upper left corner at the given position; `options` may change the alignment."""
        options = {"va": "top", "ha": "left", **options}
        self.figure.text(left / self.width, 1 - top / self.height, text, **options)


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Render a figure to RGB pixels, uint8 (height, width, 3)."""
    with plot_style():
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, file: Path, dpi: int = 130) -> None:
    """Write a figure to an image file, and create its folder if necessary."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with plot_style(), open_atomic(file) as stream:
        figure.savefig(stream, dpi=dpi, format=file.suffix[1:])


def format_percent(share: float) -> str:
    """Format a share in [0, 1] as a percentage with two digits."""
    value = 100 * share
    if 0 < value < 0.1:
        return f"{value:.2g} %"
    return f"{value:.1f} %" if value < 9.95 and value else f"{value:.0f} %"
