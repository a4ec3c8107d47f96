"""Training speed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from asyncdiff.callbacks.schedule import EverySteps, log_interval


class Throughput(Callback):
    """Logs train/images_per_second over all processes, every `log_every_n_steps` of the trainer.

    Waiting for data counts; validation, and what runs inside `untimed` (pictures, distances), does not.
    """

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._schedule = EverySteps(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting steps."""
        self._schedule = log_interval(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock where it stands: at the first step, and after a validation."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count this batch's images, log when due."""
        self._stop()
        self._since = time.perf_counter()
        self._images += len(batch["image"]) * trainer.world_size
        if self._schedule.due(trainer):
            for logger in trainer.loggers:
                logger.log_metrics({"train/images_per_second": self._images / self._seconds}, step=trainer.global_step)
            self._images, self._seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: the work between two epochs is not training."""
        self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands inside and goes on afterwards if it went before."""
        running = self._since is not None
        self._stop()
        yield
        self._since = time.perf_counter() if running else None

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None


@contextmanager
def untimed(trainer: Trainer) -> Iterator[None]:
    """Work that is no part of the training speed."""
    clock = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    if clock is None:
        yield
        return
    with clock.paused():
        yield
