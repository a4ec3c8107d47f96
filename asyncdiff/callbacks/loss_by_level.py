"""Log the training error of the velocity by noise level."""

from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from asyncdiff.callbacks.every_n_steps import EveryNSteps
from asyncdiff.checks import at_least
from asyncdiff.devices import to_device
from asyncdiff.training.lightning_module import AsyncDiffusion

MAX_BINS = 1000  # the names of more would not differ in their three decimals


class LossByLevel(Callback):
    """Logs the mean squared error of the velocity over the training patches of each level bin.

    The tags are train/error_by_level/LOW-HIGH. Sums stay on the device until they are logged, every
    `log_every_n_steps` of the trainer; empty bins are not logged. Checkpoints contain the sums that have not been
    logged yet, so that a resumed run logs the same values as an uninterrupted one.

    Args:
        bins: number of equal bins over [0, 1].
    """

    def __init__(self, bins: int = 8):
        at_least("bins", bins, 1, "use 8, for example", MAX_BINS)
        self.bins = bins
        self._sums: Tensor | None = None  # over the steps since the last log
        self._current: Tensor | None = None  # over the accumulated batches of the current step
        self._steps = EveryNSteps(1)

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps."""
        self._steps.start(trainer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: dict[str, Tensor], *_: Any
    ) -> None:
        """Add the errors of this batch; log them every `log_every_n_steps`."""
        sums = sum_by_bin(outputs["t"], outputs["error"], self.bins)
        self._current = sums if self._current is None else self._current + sums
        if not self._steps.is_due(trainer):
            return
        total = self._current if self._sums is None else self._sums + self._current
        due = trainer.global_step % max(trainer.log_every_n_steps, 1) == 0  # type: ignore[attr-defined]
        self._sums, self._current = None if due else total, None
        if due:
            self._log(trainer, total)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums that have not been logged yet, one per process: their total would be rounded differently."""
        if self._sums is not None:
            all_sums: Tensor = trainer.strategy.all_gather(self._sums)
            checkpoint.setdefault("level_loss", {})[str(self.bins)] = all_sums.reshape(-1, 2, self.bins).cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore these sums; if the number of processes has changed, the first process gets their total."""
        all_sums: Tensor | None = checkpoint.get("level_loss", {}).get(str(self.bins))
        self._sums = self._current = None
        if all_sums is not None and len(all_sums) == trainer.world_size:
            self._sums = to_device(all_sums[trainer.global_rank], trainer.strategy.root_device)
        elif all_sums is not None:
            self._sums = to_device(all_sums.sum(0) * (trainer.global_rank == 0), trainer.strategy.root_device)

    def _log(self, trainer: Trainer, sums: Float[Tensor, "2 bins"]) -> None:
        total, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        rows = zip(level_bins(self.bins), total, count, strict=True)
        metrics = {f"train/error_by_level/{edge}": t / n for edge, t, n in rows if n}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def level_bins(bins: int) -> list[str]:
    """Return the names LOW-HIGH of equal bins of the noise level over [0, 1]."""
    return [f"{k / bins:.3f}-{(k + 1) / bins:.3f}" for k in range(bins)]


def sum_by_bin(t: Tensor, error: Tensor, bins: int) -> Float[Tensor, "2 bins"]:
    """Return a tensor (2, bins): the sum of errors and the number of patches in each of `bins` equal bins over (0, 1].

    Patches without noise (t = 0) are ignored, since there is nothing to predict, and so are non-finite errors, which
    belong to skipped steps and would make the entire sum non-finite.
    """
    t, error = t.detach().flatten(), error.detach().flatten().to(torch.float32)
    index, counted = (t * bins).long().clamp(max=bins - 1), (t > 0) & error.isfinite()
    sums = torch.zeros(2, bins, device=t.device)
    sums[0].index_add_(0, index, error.masked_fill(~counted, 0))
    sums[1].index_add_(0, index, counted.to(torch.float32))
    return sums
