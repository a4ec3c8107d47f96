"""Plot the distribution of level maps that a model is trained on."""

from lightning.pytorch import Callback, Trainer

from asyncdiff.callbacks.tensorboard import log_figure
from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least, check_seeds
from asyncdiff.evaluation.figures.level_statistics import compute_level_statistics
from asyncdiff.training.lightning_module import AsyncDiffusion

MAX_IMAGES = 2**20  # more would not change the figure


class LevelMaps(Callback):
    """Plots the distribution of the model's level sampler at the start of training.

    The first process writes the figure to RUN/images/levels.png, where RUN is the trainer's default_root_dir, and to
    TensorBoard as images/levels. `python -m asyncdiff levels` plots several experiments side by side. Training is not
    affected, because the level maps are sampled with a separate generator.

    Args:
        images: number of level maps to sample.
        seed: seed of the level maps.
    """

    def __init__(self, images: int = 4096, seed: int = 0):
        at_least("images", images, 1, "use 4096, for example", MAX_IMAGES)
        check_seeds("seed", [seed])
        self.images = images
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Sample the level maps and plot their distribution, on the first process."""
        if not trainer.is_global_zero:
            return
        from asyncdiff.evaluation.figures.level_figure import level_figure  # slow import: matplotlib

        levels, grid = pl_module.levels, pl_module.denoiser.grid(pl_module.shape[1:])
        name, note = type(levels).__name__, object_config.format_call(levels)
        statistics = compute_level_statistics(name, levels, grid, note=note, images=self.images, seed=self.seed)
        log_figure(trainer, "levels", level_figure([statistics]))
