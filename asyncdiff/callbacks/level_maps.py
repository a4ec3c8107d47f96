"""What the levels look like that a run trains on."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.evaluation.figures.level_statistics import measure_levels
from asyncdiff.training.module import AsyncDiffusion


class LevelMaps(Callback):
    """Draws the distribution of the module's level sampler when a fit starts, on the first process.

    The picture is RUN/images/levels.png and the TensorBoard image images/levels; `python -m asyncdiff levels` draws the
    same for several experiments side by side. RUN is the trainer's default_root_dir. Training is left as it is: the
    maps have a generator of their own.

    Args:
        images: maps to draw.
        seed: of the maps that are drawn.
    """

    def __init__(self, images: int = 4096, seed: int = 0):
        at_least("images", images, 1, "4096 shows the distribution")
        self.images = images
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Draw."""
        if not trainer.is_global_zero:
            return
        # Loads matplotlib, which takes a second that other commands and processes need not spend.
        from asyncdiff.evaluation.figures.level_figure import level_figure
        from asyncdiff.evaluation.figures.style import pixels, save

        levels, grid = pl_module.levels, pl_module.denoiser.grid(pl_module.shape[1:])
        name, note = type(levels).__name__, object_config.format_call(levels)
        figure = level_figure([measure_levels(name, levels, grid, note=note, images=self.images, seed=self.seed)])
        save(figure, Path(trainer.default_root_dir) / "images" / "levels.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("images/levels", pixels(figure), trainer.global_step, dataformats="HWC")
