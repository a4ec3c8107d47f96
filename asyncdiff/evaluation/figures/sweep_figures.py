"""Draw figures that compare the variants of an ablation: final values per seed, and curves over the steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from asyncdiff.evaluation.figures.style import BLUE, FAINT, HAIR, INK, Sheet, label, plot_style

Curve = list[tuple[int, float]]  # (step, value)

# In inches.
ROW, PANEL, GAP, TOP, BOTTOM, SIDE = 0.22, 1.9, 0.35, 0.5, 0.45, 0.15
LETTER = 0.065  # approximate width of a letter in the labels
CURVES, CURVE_HEIGHT, LEGEND = 5.2, 3.0, 0.16
# Colors distinguishable with color blindness (Okabe & Ito); more variants reuse them with other dashes.
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222"]
DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1))]
LOG_RATIO = 10  # an axis is logarithmic if the ratio of the largest to the smallest value exceeds this
MAX_POINTS = 200  # maximum number of points of a curve; longer curves are averaged over bins


def dots_figure(metrics: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw one panel per metric with one row per variant: a dot for each seed's value, and a line at their mean."""
    variants = list(dict.fromkeys(name for values in metrics.values() for name in values))
    left = SIDE + LETTER * max(len(label(name)) for name in variants)
    height = ROW * len(variants)
    with plot_style():
        sheet = Sheet(left + (PANEL + GAP) * len(metrics), TOP + height + BOTTOM)
        for i, (metric, values) in enumerate(metrics.items()):
            axes = sheet.axes(left + (PANEL + GAP) * i, TOP, PANEL, height)
            sheet.text(left + (PANEL + GAP) * i, TOP - 0.28, label(metric), weight="bold")
            _draw_dots(axes, [values.get(name, []) for name in variants])
            axes.set_yticks(range(len(variants)), [label(name) if i == 0 else "" for name in variants], color=INK)
    return sheet.figure


def curves_figure(tag: str, variants: Mapping[str, Sequence[Curve]]) -> Figure:
    """Draw the mean curve of each variant over the steps, and the range over its seeds."""
    with plot_style():
        sheet = Sheet(CURVES, TOP + CURVE_HEIGHT + BOTTOM + LEGEND * -(-len(variants) // 2) + 0.1)
        sheet.text(0.6, 0.15, label(tag), weight="bold")
        axes = sheet.axes(0.6, TOP, CURVES - 0.8, CURVE_HEIGHT)
        for i, (name, curves) in enumerate(variants.items()):
            steps, values = _align_curves(curves)
            color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]
            axes.plot(steps, values.mean(0), color=color, linestyle=dash, linewidth=1.1, label=label(name))
            if len(values) > 1:
                axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12))
    return sheet.figure


def _draw_dots(axes: Axes, rows: Sequence[Sequence[float]]) -> None:
    all_values = [value for values in rows for value in values]
    # On a linear axis one bad variant would squeeze all others together.
    if all_values and min(all_values) > 0 and max(all_values) > LOG_RATIO * min(all_values):
        axes.set_xscale("log")
        # Plain numbers: within one decade Matplotlib's own labels are products with powers of ten that overlap.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for i, values in enumerate(rows):
        axes.plot(values, [i] * len(values), "o", color=BLUE, markersize=3, alpha=0.55, markeredgewidth=0)
        if values:
            mean = float(np.mean(values))
            axes.plot([mean, mean], [i - 0.32, i + 0.32], color=INK, linewidth=1.3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=HAIR, linewidth=0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", labelcolor=FAINT)


def _align_curves(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Return common steps (n,) and the values of all curves at them (curves, n); average long curves over bins.

    The mean over a bin is placed at the mean of its steps. Short curves with equal steps are not changed.
    """
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = [step for step, _ in curves[0]]
    if len(steps) <= MAX_POINTS and all([step for step, _ in curve] == steps for curve in curves):
        return np.array(steps), np.array([[value for _, value in curve] for curve in curves])
    edges = np.linspace(first, last + 1, min(MAX_POINTS, *(len(curve) for curve in curves)) + 1)
    bins = [_bin_means(curve, edges) for curve in curves]
    bin_steps = np.stack([steps for steps, _ in bins])
    common = np.nanmean(bin_steps[:, ~np.isnan(bin_steps).all(0)], axis=0)
    non_empty = [~np.isnan(steps) for steps, _ in bins]
    aligned = [np.interp(common, s[k], values[k]) for (s, values), k in zip(bins, non_empty, strict=True)]
    return common, np.stack(aligned)


def _bin_means(curve: Curve, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean step and the mean value in each bin, NaN for an empty bin."""
    steps, values = np.array([step for step, _ in curve], dtype=float), np.array([value for _, value in curve])
    counts, _ = np.histogram(steps, edges)
    means = []
    for weights in (steps, values):
        sums, _ = np.histogram(steps, edges, weights=weights)
        means.append(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))
    return means[0], means[1]
