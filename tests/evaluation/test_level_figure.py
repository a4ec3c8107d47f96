"""Level figure: layout, colors, and marks that match the statistics."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from asyncdiff.evaluation.figures.level_figure import TILE, TILES, color_maps, joint_shares, level_figure
from asyncdiff.evaluation.figures.level_statistics import compute_level_statistics
from asyncdiff.evaluation.figures.style import KNOWN_COLOR, format_percent, pixels, save
from asyncdiff.noise.level_samplers import AlongPath, Independent, Shared, WithCleanPatches
from asyncdiff.noise.orders import Raster
from asyncdiff.noise.paths import AsyncPatch, Ordered


def small_statistics(name="a", sampler=None, grid=(4, 4)):
    return compute_level_statistics(name, sampler or AlongPath(), grid, note="a note", images=64)


def histogram_axes(figure):
    return [axes for axes in figure.axes if axes.get_xlabel() == "level of a patch, t"]


@pytest.mark.parametrize(
    ("count", "max_columns", "bands", "columns"), [(1, 5, 1, 1), (5, 5, 1, 5), (6, 5, 2, 3), (3, 1, 3, 1)]
)
def test_many_samplers_are_split_into_bands(count, max_columns, bands, columns):
    boxes = [
        axes.get_position() for axes in histogram_axes(level_figure([small_statistics()] * count, columns=max_columns))
    ]
    assert len(boxes) == count
    assert len({round(box.x0, 6) for box in boxes}) == columns
    assert len({round(box.y0, 6) for box in boxes}) == bands
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)


def test_a_band_without_paths_is_lower():
    samplers = [Independent(), AlongPath()]
    without, with_path = (level_figure([small_statistics(sampler=s)]).get_size_inches()[1] for s in samplers)
    assert without < with_path - 1


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts} | {t.get_text() for t in figure.texts}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_exact_zeros_and_ones_are_annotated():
    shown = texts(level_figure([small_statistics(sampler=AlongPath(Ordered(Raster(), 0.5)))]))
    assert any(text.endswith("% at 0") for text in shown)
    assert any(text.endswith("% at 1") for text in shown)
    assert not any(" known)" in text for text in shown)


def test_known_patches_and_the_density_are_drawn_and_in_the_legend_only_where_they_exist():
    clean_patches = small_statistics(sampler=WithCleanPatches(AlongPath(), 1.0))
    alone, both = level_figure([clean_patches]), level_figure([small_statistics(), clean_patches])
    known = f"({format_percent(float(clean_patches.known.float().mean()))} known)"
    assert {"a", "a note", "4×4", f"{float(clean_patches.spreads.mean()):.2f}", known} <= texts(alone)
    assert "no path" in texts(both)
    assert [len(axes.lines) for axes in histogram_axes(both)] == [1, 0]
    assert legend(alone) == ["noise, t = 1", "clean, t = 0", "known: clean, no loss", "largest sd possible"]
    assert "exact density" in legend(both)


def test_the_histogram_integrates_to_the_share_between_the_ends():
    statistics = [small_statistics(sampler=AlongPath(Ordered(Raster(), 0.5))), small_statistics()]
    inner = ((statistics[0].t > 0) & (statistics[0].t < 1)).float().mean()
    for axes, mass in zip(histogram_axes(level_figure(statistics)), (inner, 1.0), strict=True):
        heights, edges, _ = axes.patches[0].get_data()
        assert (heights * np.diff(edges)).sum() == pytest.approx(float(mass), abs=1e-5)


def test_the_joint_histogram_contains_every_image():
    for sampler in (Shared(), AlongPath(), WithCleanPatches(AlongPath()), AlongPath(Ordered(Raster()))):
        assert joint_shares(small_statistics(sampler=sampler)).sum().item() == pytest.approx(1)


def test_known_patches_have_their_own_color():
    t = torch.tensor([[[0.0, 0.25], [1.0, 0.0]]])
    known = torch.tensor([[[False, False], [False, True]]])
    colors = color_maps(t, known)
    assert colors[0, 0].tolist() == [[0, 0, 0], [0.25, 0.25, 0.25]]
    assert colors[0, 1, 1].tolist() == pytest.approx(to_rgb(KNOWN_COLOR))


@pytest.mark.parametrize("grid", [(2, 8), (8, 2), (1, 1)])
def test_wide_and_tall_maps_fit_into_their_tiles_without_distortion(grid):
    tiles = [image for axes in level_figure([small_statistics(grid=grid)]).axes for image in axes.images]
    extents = [tile.get_extent() for tile in tiles if tile.get_array().shape[:2] == grid]
    assert len(extents) == 2 * TILES
    for left, right, bottom, top in extents:
        width, height = right - left, bottom - top
        assert max(width, height) == pytest.approx(TILE)
        assert height / width == pytest.approx(grid[0] / grid[1])


def test_the_saved_figure_equals_the_rendered_pixels(tmp_path):
    figure = level_figure([small_statistics(sampler=AlongPath(AsyncPatch(0.5)))])
    save(figure, tmp_path / "new" / "levels.png", dpi=50)
    with Image.open(tmp_path / "new" / "levels.png") as image:
        saved = np.asarray(image.convert("RGB"))
    assert np.array_equal(saved, pixels(figure, dpi=50))
    assert saved.min() < 100 < saved.max()


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.00024, "0.024 %"), (0.0123, "1.2 %"), (0.17, "17 %"), (1, "100 %")]
)
def test_percentages_have_two_digits(share, text):
    assert format_percent(share) == text


@pytest.mark.slow
def test_figures_do_not_import_pyplot():
    code = (
        "import sys; from asyncdiff.noise.level_samplers import AlongPath; "
        "from asyncdiff.evaluation.figures.level_statistics import compute_level_statistics; "
        "assert 'matplotlib' not in sys.modules; from asyncdiff.evaluation.figures.level_figure import level_figure; "
        "level_figure([compute_level_statistics('a', AlongPath(), (4, 4), images=8)]); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
