"""Draw a figure that compares level samplers: levels within and between images, example maps, and a path."""

import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from asyncdiff.evaluation.figures.level_statistics import LevelStatistics
from asyncdiff.evaluation.figures.style import (
    BLUE,
    FAINT,
    HAIR,
    INK,
    KNOWN_COLOR,
    KNOWN_INK,
    PALE_BLUE,
    VERMILION,
    Sheet,
    format_percent,
    label,
    plot_style,
)
from asyncdiff.foreign_text import visible

COLUMNS = 5  # maximum number of columns in a band; more samplers are split into several bands
BINS = 50  # number of bins in the level histogram
MAX_DENSITY = 3.2  # upper limit of the density axis, the same in all columns
JOINT_BINS = (60, 42)  # numbers of bins in the joint histogram, for means and standard deviations
MAX_SD = 0.53  # upper limit of the standard deviation axis; no map has more than 0.5
TILES, TILES_IN_ROW = 10, 5
ATOM = 0.005  # share of patches above which exact zeros or ones are annotated and not part of the histogram
DASHES = (0, (3, 2))
# In inches.
LEFT, RIGHT, COLUMN, GAP = 0.62, 0.14, 2.4, 0.3
HEADER, LINE, ENTRY = 0.75, 0.17, 1.6  # title with the color scale; height and width of a legend entry
TITLE, NUMBERS, HISTOGRAM, JOINT = 0.55, 0.44, 1.0, 1.3
AXIS, TILE, TILE_GAP, CAPTION, BAND_GAP = 0.44, 0.44, 0.05, 0.12, 0.3
MARGIN_LABEL = 0.32  # distance from a column to the label on its left
TILE_BLOCK = TILES // TILES_IN_ROW * (TILE + CAPTION + TILE_GAP)


def level_figure(statistics: Sequence[LevelStatistics], *, columns: int = COLUMNS) -> Figure:
    """Draw one column per sampler, in bands with at most `columns` columns."""
    bands = math.ceil(len(statistics) / columns)
    columns = math.ceil(len(statistics) / bands)
    rows = [statistics[k : k + columns] for k in range(0, len(statistics), columns)]
    width = LEFT + columns * (COLUMN + GAP) - GAP + RIGHT
    with plot_style():
        scale = common_scale(statistics)
        entries = legend_entries(statistics)
        in_line = max(1, int((width - LEFT) / ENTRY))
        top = HEADER + LINE * math.ceil(len(entries) / in_line)
        sheet = Sheet(width, top + sum(map(band_height, rows)))
        title = f"Noise levels, {len(statistics[0].t)} maps" + (" each" if len(statistics) > 1 else "")
        draw_legend(sheet, title, entries, in_line, scale)
        for row in rows:
            for column, stats in enumerate(row):
                draw_column(sheet, LEFT + column * (COLUMN + GAP), top, stats, scale, row)
            top += band_height(row)
    return sheet.figure


def legend_entries(statistics: Sequence[LevelStatistics]) -> list[Artist]:
    """Return a labeled symbol for everything that appears in some column."""
    entries: list[Artist] = [
        Patch(facecolor="white", edgecolor=FAINT, linewidth=0.6, label="noise, t = 1"),
        Patch(facecolor="black", label="clean, t = 0"),
    ]
    if any(stats.known.any() for stats in statistics):
        entries.append(Patch(facecolor=KNOWN_COLOR, label="known: clean, no loss"))
    if any(stats.density is not None for stats in statistics):
        entries.append(Line2D([], [], color=VERMILION, linewidth=1, label="exact density"))
    entries.append(Line2D([], [], color=FAINT, linewidth=0.7, linestyle=DASHES, label="largest sd possible"))
    return entries


def draw_legend(sheet: Sheet, title: str, entries: Sequence[Artist], in_line: int, scale: ScalarMappable) -> None:
    """Write the title of the figure, and draw the color scale and the legend below it."""
    sheet.text(LEFT, 0.12, title, fontsize=10)
    sheet.figure.colorbar(scale, cax=sheet.axes(LEFT, 0.4, 0.3, 0.1), orientation="horizontal").ax.set_axis_off()
    low, high = (format_percent(share or 0) for share in scale.get_clim())
    sheet.text(LEFT + 0.38, 0.45, f"{low} to {high} of the images in a cell", va="center", fontsize=7.5, color=FAINT)
    sheet.figure.legend(
        handles=list(entries),
        ncols=in_line,
        loc="upper left",
        bbox_to_anchor=(LEFT / sheet.width, 1 - 0.56 / sheet.height),
        frameon=False,
        fontsize=7.5,
        labelcolor=FAINT,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.5,
    )


def band_height(row: Sequence[LevelStatistics]) -> float:
    """Return the height of a band in inches; it has room for paths only if a column has one."""
    blocks = 1 + any(stats.path is not None for stats in row)
    return TITLE + NUMBERS + HISTOGRAM + JOINT + 2 * AXIS + blocks * (TILE_BLOCK + 0.1) + BAND_GAP


def draw_column(
    sheet: Sheet, left: float, top: float, stats: LevelStatistics, scale: ScalarMappable, row: Sequence[LevelStatistics]
) -> None:
    """Draw the column for one sampler; only the first column in `row` has axis labels."""
    first = stats is row[0]
    draw_header(sheet, left, top, stats)
    top += TITLE + NUMBERS
    draw_histogram(sheet.axes(left, top, COLUMN, HISTOGRAM), stats, labeled=first)
    top += HISTOGRAM + AXIS
    draw_joint(sheet.axes(left, top, COLUMN, JOINT), stats, scale, labeled=first)
    top += JOINT + AXIS
    blocks = [("maps, by mean", draw_examples), ("a path, by s", draw_path)]
    for title, draw in blocks if any(neighbor.path is not None for neighbor in row) else blocks[:1]:
        if first:
            middle = top + TILE_BLOCK / 2 - 0.05
            sheet.text(left - MARGIN_LABEL, middle, title, rotation=90, ha="right", va="center", fontsize=8)
        draw(sheet.axes(left, top, COLUMN, TILE_BLOCK), stats)
        top += TILE_BLOCK + 0.1


def draw_header(sheet: Sheet, left: float, top: float, stats: LevelStatistics) -> None:
    """Write the name and the description of the sampler, and below them the summary numbers in a row."""
    sheet.text(left, top, label(stats.name), fontsize=10, fontweight="bold")
    lines = textwrap.wrap(visible(stats.note), 46, max_lines=2, placeholder=" …")
    sheet.text(left, top + 0.2, "\n".join(label(line, 50) for line in lines), fontsize=7, color=FAINT, linespacing=1.25)
    numbers = (
        (0.0, "mean", f"{float(stats.means.mean()):.2f}"),
        (0.18, "sd in image", f"{float(stats.spreads.mean()):.2f}"),
        (0.44, "t < 0.1", format_percent(stats.below(0.1))),
        (0.63, "t > 0.9", format_percent(stats.above(0.9))),
        (0.82, "grid", f"{stats.grid[0]}×{stats.grid[1]}"),
    )
    for offset, name, value in numbers:
        sheet.text(left + offset * COLUMN, top + TITLE, name, fontsize=6.5, color=FAINT)
        sheet.text(left + offset * COLUMN, top + TITLE + 0.12, value, fontsize=8.5)


def draw_histogram(axes: Axes, stats: LevelStatistics, *, labeled: bool) -> None:
    """Draw the histogram of all levels and the exact density; annotate exact zeros and ones, which have no density."""
    t = stats.t.flatten()
    zeros, ones = (float((t == end).float().mean()) for end in (0, 1))
    inner = t[((t > 0) | (zeros < ATOM)) & ((t < 1) | (ones < ATOM))]
    heights = torch.histc(inner, BINS, 0, 1) * BINS / t.numel()
    edges = np.linspace(0, 1, BINS + 1)
    axes.stairs(heights.numpy(), edges, fill=True, color=PALE_BLUE, linewidth=0)
    if stats.density is not None:
        at = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        axes.plot(at, stats.density(at), color=VERMILION, linewidth=1)
    known = float(stats.known.float().mean())
    for x, share, side in ((0.0, zeros, "left"), (1.0, ones, "right")):
        if share >= ATOM:
            axes.vlines(x, 0, MAX_DENSITY, color=BLUE, linewidth=3)
            annotate_atom(axes, x, side, f"{format_percent(share)} at {x:g}", INK, line=0)
    if known:
        annotate_atom(axes, 0, "left", f"({format_percent(known)} known)", KNOWN_INK, line=1)
    format_axes(axes, "level of a patch, t", "density" if labeled else "", (0, MAX_DENSITY), [0, 1, 2, 3])


def annotate_atom(axes: Axes, x: float, side: str, text: str, color: str, *, line: int) -> None:
    """Write a note at the left or right end of the histogram."""
    offset = 0.035 if side == "left" else -0.035
    axes.text(x + offset, MAX_DENSITY * (0.97 - 0.14 * line), text, ha=side, va="top", color=color, fontsize=7.5)


def joint_shares(stats: LevelStatistics) -> Float[Tensor, "sd mean"]:
    """Return the share of images per bin of the mean level (columns) and standard deviation in the image (rows)."""
    counts, _, _ = np.histogram2d(
        stats.spreads.double().numpy(),
        stats.means.double().clamp(0, 1).numpy(),
        bins=(JOINT_BINS[1], JOINT_BINS[0]),
        range=((0, MAX_SD), (0, 1)),
    )
    return torch.from_numpy(counts) / len(stats.t)


def common_scale(statistics: Iterable[LevelStatistics]) -> ScalarMappable:
    """Return a logarithmic color scale, from the smallest nonzero share in a bin to the largest of all columns."""
    shares = [joint_shares(stats) for stats in statistics]
    lowest = min(float(share[share > 0].min()) for share in shares)
    highest = max(float(share.max()) for share in shares)
    colors = ListedColormap(colormaps["YlGnBu"](np.linspace(0.18, 1, 256)))
    return ScalarMappable(LogNorm(min(lowest, highest / 2), highest), colors)


def draw_joint(axes: Axes, stats: LevelStatistics, scale: ScalarMappable, *, labeled: bool) -> None:
    """Draw the standard deviation of levels within an image over their mean; the dashed arch is its upper bound."""
    shares = joint_shares(stats).numpy()
    axes.imshow(
        np.ma.masked_equal(shares, 0),
        origin="lower",
        extent=(0, 1, 0, MAX_SD),
        aspect="auto",
        interpolation="nearest",
        norm=LogNorm(*scale.get_clim()),
        cmap=scale.cmap,
    )
    mean = np.linspace(0, 1, 201)
    axes.plot(mean, np.sqrt(mean * (1 - mean)), color=FAINT, linewidth=0.7, linestyle=DASHES)
    format_axes(axes, "mean level of an image", "sd within the image" if labeled else "", (0, MAX_SD), [0, 0.25, 0.5])


def format_axes(axes: Axes, xlabel: str, ylabel: str, ylim: tuple[float, float], yticks: Sequence[float]) -> None:
    """Format axes over [0, 1] with few ticks and no box; the y axis has tick labels only if it has a label."""
    axes.set_xlim(0, 1)
    axes.set_ylim(ylim)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks(yticks, [f"{tick:g}" for tick in yticks] if ylabel else [""] * len(yticks))
    axes.set_xlabel(xlabel, labelpad=1)
    axes.set_ylabel(ylabel)
    axes.yaxis.set_label_coords(-MARGIN_LABEL / COLUMN, 0.5)


def draw_examples(axes: Axes, stats: LevelStatistics) -> None:
    """Draw example maps, evenly spaced in the order of their means, with known patches in color."""
    indices = stats.examples(TILES)
    captions = [f"{mean:.2f}" for mean in stats.means[indices].tolist()]
    draw_tiles(axes, color_maps(stats.t[indices], stats.known[indices]), captions)


def draw_path(axes: Axes, stats: LevelStatistics) -> None:
    """Draw the maps along one random curve of the path, from noise to clean."""
    if stats.path is None:
        axes.set_axis_off()
        axes.text(0, 1, "no path", va="top", color=FAINT, fontsize=7.5)
        return
    maps = stats.curves(TILES, 1)[:, 0]
    captions = [f"{1 - k / (TILES - 1):.2f}" for k in range(TILES)]
    draw_tiles(axes, color_maps(maps, torch.zeros(maps.shape, dtype=torch.bool)), captions)


def color_maps(t: Float[Tensor, "n gh gw"], known: Bool[Tensor, "n gh gw"]) -> Float[Tensor, "n gh gw 3"]:
    """Return the RGB colors of maps: white for noise, black for clean, and `KNOWN_COLOR` for known patches."""
    color = torch.tensor(to_rgb(KNOWN_COLOR), dtype=t.dtype)
    return torch.where(known[..., None], color, t[..., None])


def draw_tiles(axes: Axes, tiles: Float[Tensor, "n gh gw 3"], captions: Sequence[str]) -> None:
    """Draw maps in rows, each in a thin frame with its caption below."""
    axes.set_xlim(0, COLUMN)
    axes.set_ylim(TILE_BLOCK, 0)
    axes.set_axis_off()
    gh, gw = tiles.shape[1:3]
    width, height = TILE * gw / max(gh, gw), TILE * gh / max(gh, gw)
    step = (COLUMN - TILE) / (TILES_IN_ROW - 1)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = i % TILES_IN_ROW * step + (TILE - width) / 2
        y = i // TILES_IN_ROW * (TILE + CAPTION + TILE_GAP)
        extent = (x, x + width, y + height, y)
        axes.imshow(tile.numpy(), extent=extent, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=HAIR, linewidth=0.6, clip_on=False))
        axes.text(x + width / 2, y + height + 0.02, caption, ha="center", va="top", fontsize=6, color=FAINT)
