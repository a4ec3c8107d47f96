"""Progress bar over all optimizer steps of a run."""

import sys
from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm.auto import tqdm

from asyncdiff.checks import at_least
from asyncdiff.devices import HostCopy

LOSS = "train/loss"  # name under which the module logs the loss


class StepProgressBar(TQDMProgressBar):
    """Progress bar over all optimizer steps of a run, with the remaining time; Lightning's bar covers a single epoch.

    It is drawn at most ten times per second, and never waits for a GPU: the loss that it shows there is the last one
    that has arrived on the host, some steps old. Runs that are limited by epochs or time, without `max_steps`, show the
    batches of an epoch. `train.py` adds this callback by default.

    Args:
        refresh_rate: minimum number of steps between two updates of the bar; 0 disables it.
    """

    def __init__(self, refresh_rate: int = 1):
        at_least("refresh_rate", refresh_rate, 0, "1 updates it in every step, 0 disables it")
        super().__init__(refresh_rate=refresh_rate)
        self._losses: deque[HostCopy] = deque()  # on their way to the host
        self._loss: float | None = None  # last one that has arrived

    def init_train_tqdm(self) -> Any:
        """Return the bar; it is drawn by time, where tqdm would estimate a number of steps from the fastest so far."""
        bar = super().init_train_tqdm()
        bar.miniters, bar.dynamic_miniters = 1, False
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what Lightning shows and the loss, without waiting for it."""
        if (loss := trainer.callback_metrics.get(LOSS)) is not None:
            self._losses.append(HostCopy(loss))
        while self._losses and self._losses[0].arrived:
            self._loss = float(self._losses.popleft().read())
        shown: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return shown if self._loss is None else {**shown, LOSS: self._loss}

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the bar at the trainer's current step, also in a resumed run."""
        super().on_train_start(trainer, *_)
        self._losses.clear()
        self._loss = None
        if trainer.max_steps > 0:
            bar = self.train_progress_bar
            bar.reset(total=trainer.max_steps)
            bar.initial = bar.n = trainer.global_step  # earlier steps count as done but do not affect the speed
            bar.set_description("Training")
            bar.unit = "step"

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.max_steps <= 0:
            super().on_train_epoch_start(trainer, *_)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar if the batch completes an optimizer step, or without `max_steps` by every batch."""
        bar, done = self.train_progress_bar, trainer.global_step if trainer.max_steps > 0 else batch_idx + 1
        is_last = done == bar.total
        if done > bar.n and (done % max(1, self.refresh_rate) == 0 or is_last):
            drawn = bar.update(done - bar.n)
            if drawn or is_last:
                bar.set_postfix(self.get_metrics(trainer, pl_module))


def print_above_bar(trainer: Trainer, text: str) -> None:
    """Print a line above the progress bar, on the first process; do nothing if no bar is shown."""
    bar = trainer.progress_bar_callback
    if trainer.is_global_zero and isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        tqdm.write(text, file=sys.stderr)  # the bar's own `print` is silent once its last step is done
