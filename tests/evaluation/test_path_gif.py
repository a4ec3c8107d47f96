"""Animated GIF of a path: content of the frames, and file size."""

import numpy as np
import pytest
from PIL import Image

from asyncdiff.evaluation.figures.level_statistics import compute_level_statistics
from asyncdiff.evaluation.figures.path_gif import (
    BAR_WIDTH,
    CURVES,
    FILLED,
    LIMIT,
    MARGIN,
    SIDE,
    draw_path_frames,
    save_gif,
)
from asyncdiff.noise.level_samplers import AlongPath
from asyncdiff.noise.paths import AsyncPatch, Synchronous


def path_frames(path, grid, frames=60):
    return draw_path_frames(compute_level_statistics("a", AlongPath(path), grid, images=4), frames)


def test_frames_show_the_maps_and_the_progress():
    stats = compute_level_statistics("a", AlongPath(), (4, 4), images=4)
    frames, maps = draw_path_frames(stats, 11), stats.curves(11, CURVES)
    assert len(frames) == 11
    assert len({frame.size for frame in frames}) == 1
    for k, frame in enumerate(frames):
        shown = np.asarray(frame)
        for curve in range(CURVES):
            left = MARGIN + curve * (SIDE + MARGIN)
            middles = shown[MARGIN + 10 : MARGIN + SIDE : 20, left + 10 : left + SIDE : 20, 0]
            assert np.abs(middles / 255 - maps[k, curve].numpy()).max() < 0.003
        blue = (shown == FILLED).all(-1)
        assert blue.any(0).sum() == pytest.approx(k / 10 * (frame.width - 2 * MARGIN - BAR_WIDTH), abs=2)


def test_equal_curves_are_shown_once():
    (noise, half, _) = path_frames(Synchronous(), (4, 4), frames=3)
    assert noise.width == 2 * SIDE + 2 * MARGIN
    inner = np.asarray(half)[MARGIN : MARGIN + 2 * SIDE, MARGIN : MARGIN + 2 * SIDE]
    assert (np.abs(inner.astype(int) - 127.5) < 1).all()


@pytest.mark.parametrize("grid", [(4, 4), (32, 32), (8, 24)])
def test_gifs_are_small_and_start_in_the_middle_of_the_path(grid, tmp_path):
    file = tmp_path / "a.gif"
    save_gif(path_frames(AsyncPatch(), grid), file)
    assert file.stat().st_size < LIMIT
    with Image.open(file) as movie:
        assert movie.n_frames >= 30 if max(grid) <= 16 else movie.n_frames >= 15
        assert movie.info["loop"] == 0
        first = np.asarray(movie.convert("L"))[MARGIN + 2 : -MARGIN - 22, MARGIN + 2 : MARGIN + 2 + SIDE // 2]
        assert 50 < first.mean() < 200
        levels, pauses = [], []
        for index in range(movie.n_frames):
            movie.seek(index)
            inner = np.asarray(movie.convert("L"))[MARGIN + 2 : MARGIN + 10, MARGIN + 2 : MARGIN + 10]
            levels.append(set(inner.flat))
            pauses.append(movie.info["duration"])
        clean, noise = (index for index, pause in enumerate(pauses) if pause == max(pauses))
        assert noise == clean + 1
        assert abs(clean - movie.n_frames / 2) <= 1
        assert (levels[clean], levels[noise]) == ({0}, {255})
