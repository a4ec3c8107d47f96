"""Draw predicted and actual velocity errors, by noise level and between patches of similar level."""

import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from asyncdiff.evaluation.figures.style import BLUE, FAINT, VERMILION, Sheet, plot_style

# In inches.
LEFT, RIGHT, PANEL, GAP, BAR = 0.7, 0.6, 2.8, 0.85, 0.1
TITLE, BOTTOM = 0.55, 0.5
DARKEST, PALEST = 0.0, 0.92  # range of the colormap used for levels; its palest yellow is invisible on white


def calibration_figure(
    predicted: Float[Tensor, " bins"],
    actual: Float[Tensor, " bins"],
    grouped_predicted: Float[Tensor, "bins groups"],
    grouped_actual: Float[Tensor, "bins groups"],
    *,
    note: str = "",
) -> Figure:
    """Return a figure of mean squared errors by level and, for each level, of groups with similar predictions.

    The levels are equal bins over [0, 1], in which errors are NaN if they are empty; the groups of a bin are equally
    large. The note is written below the title.
    """
    with plot_style():
        sheet = Sheet(LEFT + 2 * PANEL + GAP + RIGHT, TITLE + PANEL + BOTTOM)
        sheet.text(LEFT, 0.1, "predicted and actual squared error of the velocity", weight="bold")
        sheet.text(LEFT, 0.27, note, color=FAINT, size=7)
        _draw_by_level(sheet.axes(LEFT, TITLE, PANEL, PANEL), predicted, actual)
        left = LEFT + PANEL + GAP
        mappable = _draw_between_patches(sheet.axes(left, TITLE, PANEL, PANEL), grouped_predicted, grouped_actual)
        scale = sheet.axes(left + PANEL + 0.12, TITLE, BAR, PANEL)
        sheet.figure.colorbar(mappable, cax=scale, label="noise level t", ticks=[0, 0.5, 1])
    return sheet.figure


def _draw_by_level(axes: Axes, predicted: Float[Tensor, " bins"], actual: Float[Tensor, " bins"]) -> None:
    edges = torch.linspace(0, 1, len(predicted) + 1).tolist()
    axes.stairs(actual.tolist(), edges, baseline=None, color=BLUE, linewidth=1.6, label="actual")
    axes.stairs(predicted.tolist(), edges, baseline=None, color=VERMILION, linewidth=1, label="predicted")
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xlabel("noise level t")
    axes.set_ylabel("mean squared error")
    axes.legend(frameon=False, fontsize=7)


def _draw_between_patches(
    axes: Axes, predicted: Float[Tensor, "bins groups"], actual: Float[Tensor, "bins groups"]
) -> ScalarMappable:
    bins = len(predicted)
    colors = ListedColormap(colormaps["viridis"](torch.linspace(DARKEST, PALEST, bins).numpy()))
    for k in range(bins):
        axes.plot(predicted[k].tolist(), actual[k].tolist(), color=colors(k), linewidth=0.8, marker="o", markersize=2.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    errors = torch.stack([predicted, actual])
    errors = errors[errors.isfinite() & (errors > 0)]
    if len(errors):
        low, high = float(errors.min()) / 1.2, float(errors.max()) * 1.2
        axes.plot([low, high], [low, high], color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
    axes.set_xlabel("predicted, by groups of patches at one level")
    axes.set_ylabel("actual")
    return ScalarMappable(BoundaryNorm(torch.linspace(0, 1, bins + 1).tolist(), bins), colors)
