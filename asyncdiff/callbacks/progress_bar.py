"""How far a run is, of all its steps, and what it is busy with."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm.auto import tqdm


class StepProgressBar(TQDMProgressBar):
    """A bar over all optimiser steps of the run, with the time that is left; Lightning's counts batches of an epoch.

    Runs that are bounded by epochs or by time, without `max_steps`, have Lightning's. `train.py` has this one without
    being told.

    Args:
        refresh_rate: steps between two updates of the bar; 0 shows none.
    """

    def __init__(self, refresh_rate: int = 1):
        super().__init__(refresh_rate=refresh_rate)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin where the run begins, be it the middle."""
        super().on_train_start(trainer, *_)
        if trainer.max_steps > 0:
            bar = self.train_progress_bar
            bar.reset(total=trainer.max_steps)
            bar.initial = bar.n = trainer.global_step  # what was done before counts, and took no time
            bar.set_description("Training")
            bar.unit = "step"

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Go on."""
        if trainer.max_steps <= 0:
            super().on_train_epoch_start(trainer, *_)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """One step further, where the batch ends one."""
        if trainer.max_steps <= 0:
            super().on_train_batch_end(trainer, pl_module, *batch)
            return
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and (step % max(1, self.refresh_rate) == 0 or step == bar.total):
            bar.update(step - bar.n)
            bar.set_postfix(self.get_metrics(trainer, pl_module))


def print_above_bar(trainer: Trainer, text: str) -> None:
    """A line above the bar, on the first process; nothing where no bar is shown."""
    bar = trainer.progress_bar_callback
    if trainer.is_global_zero and isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        tqdm.write(text, file=sys.stderr)  # the bar's own `print` is silent once its last step is done
