"""What watches a run: averages, pictures, distances, errors by level, calibration, speed."""

from asyncdiff.callbacks.calibration import Calibration
from asyncdiff.callbacks.resume_logging import Continuation
from asyncdiff.callbacks.denoising_strip import DenoisingStrip
from asyncdiff.callbacks.ema import Ema
from asyncdiff.callbacks.frechet import Frechet
from asyncdiff.callbacks.image_writer import ImageWriter
from asyncdiff.callbacks.inpainting_grid import Inpainting
from asyncdiff.callbacks.graceful_shutdown import Interruption
from asyncdiff.callbacks.loss_by_level import LevelLoss
from asyncdiff.callbacks.level_maps import LevelMaps
from asyncdiff.callbacks.likelihood import Likelihood
from asyncdiff.callbacks.progress_bar import StepProgress
from asyncdiff.callbacks.sample_grid import SampleGrid
from asyncdiff.callbacks.throughput import Throughput

__all__ = [
    "Calibration",
    "Continuation",
    "DenoisingStrip",
    "Ema",
    "Frechet",
    "ImageWriter",
    "Inpainting",
    "Interruption",
    "LevelLoss",
    "LevelMaps",
    "Likelihood",
    "SampleGrid",
    "StepProgress",
    "Throughput",
]
