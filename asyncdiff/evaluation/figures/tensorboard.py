"""Write the statistics of a level sampler to TensorBoard event files."""

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from asyncdiff.evaluation.figures.level_figure import level_figure
from asyncdiff.evaluation.figures.level_statistics import LevelStatistics
from asyncdiff.evaluation.figures.path_gif import draw_path_frames
from asyncdiff.evaluation.figures.style import pixels

SUFFIX = ".levels"  # suffix of these event files, so that a second call replaces only them
STEPS = 10  # number of images that TensorBoard keeps per tag


def write_events(stats: LevelStatistics, folder: Path) -> None:
    """Write the sampler's figure, histograms of its levels, and one map along its path per TensorBoard step."""
    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        writer.add_image("levels/figure", pixels(level_figure([stats])), 0, dataformats="HWC")
        writer.add_histogram("levels/of_patches", stats.t, 0)
        writer.add_histogram("levels/mean_of_image", stats.means, 0)
        writer.add_histogram("levels/sd_in_image", stats.spreads, 0)
        if stats.path is not None:
            for step, frame in enumerate(draw_path_frames(stats, STEPS)):
                writer.add_image("levels/path", np.asarray(frame), step, dataformats="HWC")
