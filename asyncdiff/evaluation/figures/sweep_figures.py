"""Runs of several variants beside each other: every seed's last value, and curves over the steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from asyncdiff.evaluation.figures.style import BLUE, FAINT, HAIR, INK, Sheet, styled

Curve = list[tuple[int, float]]  # steps with values

# In inches.
ROW, PANEL, GAP, TOP, BOTTOM, SIDE = 0.22, 1.9, 0.35, 0.5, 0.45, 0.15
LETTER = 0.065  # width of a letter of the labels, about
CURVES, CURVE_HEIGHT, LEGEND = 5.2, 3.0, 0.16
# Apart for the colour-blind (Okabe & Ito); more than these repeat with other dashes.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222"]
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1))]
WIDE = 10  # largest value by smallest, above which an axis is logarithmic
SMOOTHED = 200  # points of a curve that are drawn; each the mean of those between


def dots_figure(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A panel per metric with a row per variant: a dot for every seed, and a line at their mean.

    Args:
        found: by metric, the values of each variant; the variants in the same order everywhere.
    """
    variants = list(dict.fromkeys(name for rows in found.values() for name in rows))
    left = SIDE + LETTER * max(map(len, variants))
    height = ROW * len(variants)
    with styled():
        sheet = Sheet(left + (PANEL + GAP) * len(found), TOP + height + BOTTOM)
        for at, (metric, rows) in enumerate(found.items()):
            axes = sheet.axes(left + (PANEL + GAP) * at, TOP, PANEL, height)
            sheet.text(left + (PANEL + GAP) * at, TOP - 0.28, metric, weight="bold")
            _dots(axes, [rows.get(name, []) for name in variants])
            axes.set_yticks(range(len(variants)), variants if at == 0 else [""] * len(variants), color=INK)
    return sheet.figure


def curves_figure(tag: str, found: Mapping[str, Sequence[Curve]]) -> Figure:
    """The mean of each variant's curves over the steps, within the range of its seeds."""
    with styled():
        sheet = Sheet(CURVES, TOP + CURVE_HEIGHT + BOTTOM + LEGEND * -(-len(found) // 2) + 0.1)
        sheet.text(0.6, 0.15, tag, weight="bold")
        axes = sheet.axes(0.6, TOP, CURVES - 0.8, CURVE_HEIGHT)
        for at, (name, curves) in enumerate(found.items()):
            steps, values = _together(curves)
            colour, dash = COLOURS[at % len(COLOURS)], DASHES[at // len(COLOURS) % len(DASHES)]
            axes.plot(steps, values.mean(0), color=colour, linestyle=dash, linewidth=1.1, label=name)
            if len(values) > 1:
                axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12))
    return sheet.figure


def _dots(axes: Axes, rows: Sequence[Sequence[float]]) -> None:
    everything = [value for values in rows for value in values]
    # One bad variant would press all others together at one end.
    if everything and min(everything) > 0 and max(everything) > WIDE * min(everything):
        axes.set_xscale("log")
        # As plain numbers: between powers of ten Matplotlib writes as many products as it finds, one over the other.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for at, values in enumerate(rows):
        axes.plot(values, [at] * len(values), "o", color=BLUE, markersize=3, alpha=0.55, markeredgewidth=0)
        if values:
            mean = float(np.mean(values))
            axes.plot([mean, mean], [at - 0.32, at + 0.32], color=INK, linewidth=1.3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=HAIR, linewidth=0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="x", labelcolor=FAINT)


def _together(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The curves at common steps, long ones averaged over neighbouring steps: (n,) and (curves, n).

    A mean over neighbours stands at the mean of their steps; short curves of the same steps are as they are.
    """
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = [step for step, _ in curves[0]]
    if len(steps) <= SMOOTHED and all([step for step, _ in curve] == steps for curve in curves):
        return np.array(steps), np.array([[value for _, value in curve] for curve in curves])
    edges = np.linspace(first, last + 1, min(SMOOTHED, *(len(curve) for curve in curves)) + 1)
    binned = [_binned(curve, edges) for curve in curves]
    stood = np.stack([steps for steps, _ in binned])
    at = np.nanmean(stood[:, ~np.isnan(stood).all(0)], axis=0)
    known = [~np.isnan(steps) for steps, _ in binned]
    rows = [np.interp(at, s[k], values[k]) for (s, values), k in zip(binned, known, strict=True)]
    return at, np.stack(rows)


def _binned(curve: Curve, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean step and mean value of every bin, NaN where it is empty."""
    steps, values = np.array([step for step, _ in curve], dtype=float), np.array([value for _, value in curve])
    numbers, _ = np.histogram(steps, edges)
    means = []
    for weights in (steps, values):
        sums, _ = np.histogram(steps, edges, weights=weights)
        means.append(np.divide(sums, numbers, out=np.full(len(numbers), np.nan), where=numbers > 0))
    return means[0], means[1]
