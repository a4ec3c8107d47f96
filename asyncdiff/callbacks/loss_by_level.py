"""Training error of the velocity by noise level."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from asyncdiff.callbacks.every_n_steps import EveryNSteps, log_interval
from asyncdiff.checks import at_least
from asyncdiff.training.lightning_module import AsyncDiffusion


class LossByLevel(Callback):
    """Logs the mean squared error of the velocity over the training patches of each level bin.

    The tags are train/error_by_level/LOW-HIGH. Sums stay on the device until they are logged, every
    `log_every_n_steps` of the trainer; empty bins are not logged. Checkpoints hold the sums that are not logged yet, so
    that a resumed run logs the same values as an uninterrupted one.

    Args:
        bins: number of equal bins over [0, 1].
    """

    def __init__(self, bins: int = 8):
        at_least("bins", bins, 1, "use 8, for example")
        self.bins = bins
        self._sums: Tensor | None = None  # of complete steps
        self._current: Tensor | None = None  # of the accumulated batches of the current step
        self._schedule = EveryNSteps(0)

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps."""
        self._schedule = log_interval(trainer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: dict[str, Tensor], *_: Any
    ) -> None:
        """Add this batch; log when due."""
        sums = sum_by_bin(outputs["t"], outputs["error"], self.bins)
        self._current = sums if self._current is None else self._current + sums
        if trainer.fit_loop._should_accumulate():
            return
        self._sums = self._current if self._sums is None else self._sums.to(sums.device) + self._current
        self._current = None
        if self._schedule.due(trainer):
            self._log(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums not logged yet, separately for every process: their total would be rounded differently."""
        if self._sums is not None:
            every: Tensor = trainer.strategy.all_gather(self._sums)
            checkpoint.setdefault("level_loss", {})[str(self.bins)] = every.reshape(-1, 2, self.bins).cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the sums not logged yet; if the number of processes differs, the first one gets their total."""
        every: Tensor | None = checkpoint.get("level_loss", {}).get(str(self.bins))
        self._sums = self._current = None
        if every is not None and len(every) == trainer.world_size:
            self._sums = every[trainer.global_rank]
        elif every is not None:
            self._sums = every.sum(0) * (trainer.global_rank == 0)

    def _log(self, trainer: Trainer) -> None:
        assert self._sums is not None
        total, count = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = None
        edges = [f"{i / self.bins:.3f}-{(i + 1) / self.bins:.3f}" for i in range(self.bins)]
        rows = zip(edges, total, count, strict=True)
        metrics = {f"train/error_by_level/{edge}": t / n for edge, t, n in rows if n}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def sum_by_bin(t: Tensor, error: Tensor, bins: int) -> Tensor:
    """Return (2, bins): the sum of the errors and the number of patches in each equal bin of t over (0, 1].

    Patches without noise (t = 0) are ignored, since there is nothing to predict, and so are non-finite errors, which
    belong to skipped steps and would make the whole sum non-finite.
    """
    t, error = t.detach().flatten(), error.detach().flatten().to(torch.float32)
    index, counted = (t * bins).long().clamp(max=bins - 1), (t > 0) & error.isfinite()
    sums = torch.zeros(2, bins, device=t.device)
    sums[0].index_add_(0, index, error.masked_fill(~counted, 0))
    sums[1].index_add_(0, index, counted.to(torch.float32))
    return sums
