"""Training callbacks: EMA, sample grids, Fréchet distance, likelihood, calibration, loss by level, throughput."""

from asyncdiff.callbacks.calibration import Calibration
from asyncdiff.callbacks.denoising_strip import DenoisingStrip
from asyncdiff.callbacks.due_checkpoints import DueCheckpoints
from asyncdiff.callbacks.ema import EMA
from asyncdiff.callbacks.frechet import Frechet
from asyncdiff.callbacks.graceful_shutdown import GracefulShutdown
from asyncdiff.callbacks.image_writer import ImageWriter
from asyncdiff.callbacks.inpainting_grid import InpaintingGrid
from asyncdiff.callbacks.level_maps import LevelMaps
from asyncdiff.callbacks.likelihood import Likelihood
from asyncdiff.callbacks.loss_by_level import LossByLevel
from asyncdiff.callbacks.moved_run import MovedRun
from asyncdiff.callbacks.progress_bar import StepProgressBar
from asyncdiff.callbacks.resume_logging import ResumeLogging
from asyncdiff.callbacks.run_summary import RunSummary
from asyncdiff.callbacks.sample_grid import SampleGrid
from asyncdiff.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "Calibration",
    "DenoisingStrip",
    "DueCheckpoints",
    "Frechet",
    "GracefulShutdown",
    "ImageWriter",
    "InpaintingGrid",
    "LevelMaps",
    "Likelihood",
    "LossByLevel",
    "MovedRun",
    "ResumeLogging",
    "RunSummary",
    "SampleGrid",
    "StepProgressBar",
    "Throughput",
]
