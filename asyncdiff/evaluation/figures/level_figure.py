"""Level samplers side by side: their levels within and between images, example maps, and a walk along a path."""

import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from asyncdiff.evaluation.figures.level_legend import LEFT, Legend, Scale
from asyncdiff.evaluation.figures.level_statistics import Survey
from asyncdiff.evaluation.figures.style import (
    BLUE,
    FAINT,
    GIVEN,
    GIVEN_INK,
    HAIR,
    INK,
    PALE_BLUE,
    VERMILION,
    Sheet,
    percent,
    styled,
)

COLUMNS = 5  # at most, in a band; more samplers make more bands
BINS = 50  # of a level
TALLEST = 3.2  # density at which bars are cut: all columns share it
CELLS = (60, 42)  # of the joint histogram, over means and standard deviations
WIDEST = 0.53  # standard deviation shown; no map has more than 0.5
TILES, TILES_IN_ROW = 10, 5
ATOM = 0.005  # share of the patches from which exact zeros or ones are told apart from the density
# In inches.
RIGHT, COLUMN, GAP = 0.14, 2.4, 0.3
TITLE, NUMBERS, HISTOGRAM, JOINT = 0.55, 0.44, 1.0, 1.3
AXIS, TILE, TILE_GAP, CAPTION, BAND_GAP = 0.44, 0.44, 0.05, 0.12, 0.3
MARGIN_LABEL = 0.32  # from a column to the words at its left
TILE_BLOCK = TILES // TILES_IN_ROW * (TILE + CAPTION + TILE_GAP)


def level_figure(surveys: Sequence[Survey], *, columns: int = COLUMNS) -> Figure:
    """One column per sampler, in bands of at most `columns`."""
    bands = math.ceil(len(surveys) / columns)
    columns = math.ceil(len(surveys) / bands)
    rows = [surveys[k : k + columns] for k in range(0, len(surveys), columns)]
    width = LEFT + columns * (COLUMN + GAP) - GAP + RIGHT
    with styled():
        scale = common_scale(surveys)
        legend = Legend(surveys, scale, width)
        sheet = Sheet(width, legend.height + sum(map(band_height, rows)))
        legend.draw(sheet)
        top = legend.height
        for row in rows:
            for place, survey in enumerate(row):
                draw_column(sheet, LEFT + place * (COLUMN + GAP), top, survey, scale, row)
            top += band_height(row)
    return sheet.figure


def band_height(row: Sequence[Survey]) -> float:
    """Inches from the top of a band to the top of the next; a band without any path leaves their block out."""
    blocks = 1 + any(survey.path is not None for survey in row)
    return TITLE + NUMBERS + HISTOGRAM + JOINT + 2 * AXIS + blocks * (TILE_BLOCK + 0.1) + BAND_GAP


def draw_column(sheet: Sheet, left: float, top: float, survey: Survey, scale: Scale, row: Sequence[Survey]) -> None:
    """All of one sampler; `row` holds its neighbours, of which the first has the labels."""
    first = survey is row[0]
    draw_title(sheet, left, top, survey)
    top += TITLE
    draw_numbers(sheet, left, top, survey)
    top += NUMBERS
    draw_histogram(sheet.axes(left, top, COLUMN, HISTOGRAM), survey, labelled=first)
    top += HISTOGRAM + AXIS
    draw_joint(sheet.axes(left, top, COLUMN, JOINT), survey, scale, labelled=first)
    top += JOINT + AXIS
    if first:
        block_label(sheet, left, top, "maps, by mean")
    draw_examples(sheet.axes(left, top, COLUMN, TILE_BLOCK), survey)
    top += TILE_BLOCK + 0.1
    if any(neighbour.path is not None for neighbour in row):
        if first:
            block_label(sheet, left, top, "a path, by s")
        draw_path(sheet.axes(left, top, COLUMN, TILE_BLOCK), survey)


def draw_title(sheet: Sheet, left: float, top: float, survey: Survey) -> None:
    """The name, and what the sampler is."""
    sheet.text(left, top, survey.name, fontsize=10, fontweight="bold")
    lines = textwrap.wrap(survey.note, 46, max_lines=2, placeholder=" …")
    sheet.text(left, top + 0.2, "\n".join(lines), fontsize=7, color=FAINT, linespacing=1.25)


def draw_numbers(sheet: Sheet, left: float, top: float, survey: Survey) -> None:
    """A row of numbers, their names above them."""
    numbers = (
        (0.0, "mean", f"{float(survey.means.mean()):.2f}"),
        (0.18, "sd in image", f"{float(survey.spreads.mean()):.2f}"),
        (0.44, "t < 0.1", percent(survey.below(0.1))),
        (0.63, "t > 0.9", percent(survey.above(0.9))),
        (0.82, "grid", f"{survey.grid[0]}×{survey.grid[1]}"),
    )
    for place, name, value in numbers:
        sheet.text(left + place * COLUMN, top, name, fontsize=6.5, color=FAINT)
        sheet.text(left + place * COLUMN, top + 0.12, value, fontsize=8.5)


def draw_histogram(axes: Axes, survey: Survey, *, labelled: bool) -> None:
    """The levels of all patches with their exact density; exact zeros and ones, which have none, are told in words."""
    t = survey.t.flatten()
    zeros, ones = (float((t == end).float().mean()) for end in (0, 1))
    inner = t[((t > 0) | (zeros < ATOM)) & ((t < 1) | (ones < ATOM))]
    heights = torch.histc(inner, BINS, 0, 1) * BINS / t.numel()
    edges = np.linspace(0, 1, BINS + 1)
    axes.stairs(heights.numpy(), edges, fill=True, color=PALE_BLUE, linewidth=0)
    if survey.density is not None:
        at = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        axes.plot(at, survey.density(at), color=VERMILION, linewidth=1)
    given = float(survey.known.float().mean())
    for x, share, side in ((0.0, zeros, "left"), (1.0, ones, "right")):
        if share >= ATOM:
            axes.vlines(x, 0, TALLEST, color=BLUE, linewidth=3)
            note_of_atom(axes, x, side, f"{percent(share)} at {x:g}", INK, line=0)
    if given:
        note_of_atom(axes, 0, "left", f"({percent(given)} given clean)", GIVEN_INK, line=1)
    finish(axes, "level of a patch, t", "density" if labelled else "", (0, TALLEST), [0, 1, 2, 3])


def note_of_atom(axes: Axes, x: float, side: str, text: str, colour: str, *, line: int) -> None:
    """A note beside the left or right end of a histogram."""
    inwards = 0.035 if side == "left" else -0.035
    axes.text(x + inwards, TALLEST * (0.97 - 0.14 * line), text, ha=side, va="top", color=colour, fontsize=7.5)


def joint_shares(survey: Survey) -> Float[Tensor, "sd mean"]:
    """Share of the images in each cell of mean (columns) and standard deviation within the image (rows)."""
    counts, _, _ = np.histogram2d(
        survey.spreads.double().numpy(),
        survey.means.double().clamp(0, 1).numpy(),
        bins=(CELLS[1], CELLS[0]),
        range=((0, WIDEST), (0, 1)),
    )
    return torch.from_numpy(counts) / len(survey.t)


def common_scale(surveys: Iterable[Survey]) -> Scale:
    """Logarithmic, from one image in a cell to the fullest cell of all columns."""
    shares = [joint_shares(survey) for survey in surveys]
    least = min(float(share[share > 0].min()) for share in shares)
    most = max(float(share.max()) for share in shares)
    colours = ListedColormap(colormaps["YlGnBu"](np.linspace(0.18, 1, 256)))
    return Scale(LogNorm(min(least, most / 2), most), colours)


def draw_joint(axes: Axes, survey: Survey, scale: Scale, *, labelled: bool) -> None:
    """How far apart levels are within an image, by the image's mean; none can lie above the dashed arch."""
    shares = joint_shares(survey).numpy()
    axes.imshow(
        np.ma.masked_equal(shares, 0),
        origin="lower",
        extent=(0, 1, 0, WIDEST),
        aspect="auto",
        interpolation="nearest",
        norm=scale.norm,
        cmap=scale.colours,
    )
    mean = np.linspace(0, 1, 201)
    axes.plot(mean, np.sqrt(mean * (1 - mean)), color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)))
    finish(axes, "mean level of an image", "sd within the image" if labelled else "", (0, WIDEST), [0, 0.25, 0.5])


def finish(axes: Axes, xlabel: str, ylabel: str, ylim: tuple[float, float], yticks: Sequence[float]) -> None:
    """Axes over [0, 1] with few ticks and no box; numbers at the left where there is a label."""
    axes.set_xlim(0, 1)
    axes.set_ylim(ylim)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks(yticks, [f"{tick:g}" for tick in yticks] if ylabel else [""] * len(yticks))
    axes.set_xlabel(xlabel, labelpad=1)
    axes.set_ylabel(ylabel)
    axes.yaxis.set_label_coords(-MARGIN_LABEL / COLUMN, 0.5)
    axes.spines[["top", "right"]].set_visible(False)


def draw_examples(axes: Axes, survey: Survey) -> None:
    """Maps at equal steps of the rank by mean, what is given clean in colour."""
    chosen = survey.examples(TILES)
    captions = [f"{mean:.2f}" for mean in survey.means[chosen].tolist()]
    draw_tiles(axes, coloured(survey.t[chosen], survey.known[chosen]), captions)


def draw_path(axes: Axes, survey: Survey) -> None:
    """One curve from noise to clean."""
    if survey.path is None:
        axes.set_axis_off()
        axes.text(0, 1, "no path of its own", va="top", color=FAINT, fontsize=7.5)
        return
    maps = survey.curves(TILES, 1)[:, 0]
    captions = [f"{1 - k / (TILES - 1):.2f}" for k in range(TILES)]
    draw_tiles(axes, coloured(maps, torch.zeros(maps.shape, dtype=torch.bool)), captions)


def coloured(t: Float[Tensor, "n gh gw"], known: Bool[Tensor, "n gh gw"]) -> Float[Tensor, "n gh gw 3"]:
    """Maps as colours: white noise, black clean, and what is given clean in its colour."""
    given = torch.tensor(to_rgb(GIVEN), dtype=t.dtype)
    return torch.where(known[..., None], given, t[..., None])


def draw_tiles(axes: Axes, tiles: Float[Tensor, "n gh gw 3"], captions: Sequence[str]) -> None:
    """Maps in rows, each in a thin frame with a number below it."""
    axes.set_xlim(0, COLUMN)
    axes.set_ylim(TILE_BLOCK, 0)
    axes.set_axis_off()
    gh, gw = tiles.shape[1:3]
    width, height = TILE * gw / max(gh, gw), TILE * gh / max(gh, gw)
    step = (COLUMN - TILE) / (TILES_IN_ROW - 1)
    for place, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = place % TILES_IN_ROW * step + (TILE - width) / 2
        y = place // TILES_IN_ROW * (TILE + CAPTION + TILE_GAP)
        extent = (x, x + width, y + height, y)
        axes.imshow(tile.numpy(), extent=extent, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=HAIR, linewidth=0.6, clip_on=False))
        axes.text(x + width / 2, y + height + 0.02, caption, ha="center", va="top", fontsize=6, color=FAINT)


def block_label(sheet: Sheet, left: float, top: float, text: str) -> None:
    """The name of a block of tiles, upright in the margin."""
    sheet.text(left - MARGIN_LABEL, top + TILE_BLOCK / 2 - 0.05, text, rotation=90, ha="right", va="center", fontsize=8)
