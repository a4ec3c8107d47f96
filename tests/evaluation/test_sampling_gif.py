import numpy as np
import pytest
import torch
from PIL import Image

from asyncdiff.evaluation.figures.sampling_gif import FRAMES, GAP, PAUSE, SamplingGIF


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (3, 3)])
def test_frames_are_few_and_show_images_beside_their_levels(count, channels, tmp_path):
    movie, images = SamplingGIF(), torch.zeros(count, channels, 8, 8, dtype=torch.uint8)
    images[:, :, :, 4:] = 255
    for t in torch.linspace(1, 0, 200):
        movie.add(images, t.expand(count, 2, 2))
    movie.save(tmp_path / "new" / "walk.gif")
    with Image.open(tmp_path / "new" / "walk.gif") as saved:
        assert 10 <= saved.n_frames <= FRAMES + 1
        margin, shown = GAP if count > 1 else 0, []
        for index in (0, saved.n_frames - 1):
            saved.seek(index)
            shown.append(np.asarray(saved.convert("RGB"))[margin + 64, margin : margin + 260].astype(int))
        assert saved.info["duration"] >= PAUSE
    for row, level in zip(shown, (255, 0), strict=True):
        assert np.abs(row[[30, 100, 160, 220]] - np.array([0, 255, level, level])[:, None]).max() < 3
