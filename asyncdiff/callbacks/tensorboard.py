"""Log figures to the TensorBoard loggers of a trainer."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:  # slow import
    from matplotlib.figure import Figure


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the trainer's loggers that write event files."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_figure(trainer: Trainer, name: str, figure: "Figure") -> None:
    """Write a figure to RUN/images/NAME.png, where RUN is the trainer's default_root_dir, and to TensorBoard."""
    from asyncdiff.evaluation.figures.style import pixels, save  # slow import: matplotlib

    save(figure, Path(trainer.default_root_dir) / "images" / f"{name}.png")
    for logger in tensorboard_loggers(trainer):
        logger.experiment.add_image(f"images/{name}", pixels(figure), trainer.global_step, dataformats="HWC")
