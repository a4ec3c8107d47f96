"""Training speed."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs train/images_per_second over all processes, the time of validation and of pictures left out.

    The clock runs from the start to the end of each training step, waiting for data included, and is read every
    `log_every_n_steps` of the trainer.
    """

    def __init__(self) -> None:
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock where nothing runs yet: at the first step, and after other work."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count this step's images, log when due."""
        now = time.perf_counter()
        assert self._since is not None
        self._seconds += now - self._since
        self._since = now
        self._images += len(batch["image"]) * trainer.world_size
        if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                logger.log_metrics({"train/images_per_second": self._images / self._seconds}, step=trainer.global_step)
            self._images, self._seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._since = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: epoch-end work is not training."""
        self._since = None
