"""Progress bar over all optimizer steps of a run."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm.auto import tqdm

from asyncdiff.checks import at_least


class StepProgressBar(TQDMProgressBar):
    """Progress bar over all optimizer steps of a run, with the remaining time; Lightning's bar covers a single epoch.

    Runs that are limited by epochs or time, without `max_steps`, show Lightning's bar. `train.py` adds this callback by
    default.

    Args:
        refresh_rate: number of steps between two updates of the bar; 0 disables it.
    """

    def __init__(self, refresh_rate: int = 1):
        at_least("refresh_rate", refresh_rate, 0, "1 updates it in every step, 0 disables it")
        super().__init__(refresh_rate=refresh_rate)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the bar at the trainer's current step, also in a resumed run."""
        super().on_train_start(trainer, *_)
        if trainer.max_steps > 0:
            bar = self.train_progress_bar
            bar.reset(total=trainer.max_steps)
            bar.initial = bar.n = trainer.global_step  # earlier steps count as done but do not affect the speed
            bar.set_description("Training")
            bar.unit = "step"

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.max_steps <= 0:
            super().on_train_epoch_start(trainer, *_)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Advance the bar if the batch completes an optimizer step."""
        if trainer.max_steps <= 0:
            super().on_train_batch_end(trainer, pl_module, *batch)
            return
        bar, step = self.train_progress_bar, trainer.global_step
        if step > bar.n and (step % max(1, self.refresh_rate) == 0 or step == bar.total):
            bar.update(step - bar.n)
            bar.set_postfix(self.get_metrics(trainer, pl_module))


def print_above_bar(trainer: Trainer, text: str) -> None:
    """Print a line above the progress bar, on the first process; do nothing if no bar is shown."""
    bar = trainer.progress_bar_callback
    if trainer.is_global_zero and isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        tqdm.write(text, file=sys.stderr)  # the bar's own `print` is silent once its last step is done
