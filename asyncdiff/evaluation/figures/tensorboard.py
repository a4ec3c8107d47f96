"""A survey of a level sampler as event files of TensorBoard."""

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from asyncdiff.evaluation.figures.level_figure import level_figure
from asyncdiff.evaluation.figures.level_statistics import Survey
from asyncdiff.evaluation.figures.path_gif import viewer_frames
from asyncdiff.evaluation.figures.style import pixels

SUFFIX = ".levels"  # of our event files, so that a second call replaces them and no others
STEPS = 10  # pictures that TensorBoard keeps of a tag


def write_events(survey: Survey, folder: Path) -> None:
    """The sampler's column, histograms of its levels, and the walk along its path: TensorBoard's step is the viewer."""
    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        writer.add_image("levels/figure", pixels(level_figure([survey])), 0, dataformats="HWC")
        writer.add_histogram("levels/of_patches", survey.t, 0)
        writer.add_histogram("levels/mean_of_image", survey.means, 0)
        writer.add_histogram("levels/sd_in_image", survey.spreads, 0)
        if survey.path is not None:
            for step, frame in enumerate(viewer_frames(survey, STEPS)):
                writer.add_image("levels/path", np.asarray(frame), step, dataformats="HWC")
