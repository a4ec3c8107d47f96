"""Part of the LightningModule that updates the weights."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from asyncdiff.training.optimization.gradients import check_finite
from asyncdiff.training.optimization.nonfinite_steps import StepGuard
from asyncdiff.training.settings import OptimizerSettings

DUMP_FOLDER = "not_finite"  # subfolder of a run for the dumps of steps that ended it
COUNTERS_KEY = "skipped_steps"  # checkpoint key of the counters


def warmup_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate, which grows linearly from 1 / `steps` to 1 in the first `steps` steps."""
    return min(1.0, (step + 1) / max(steps, 1))


def lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the state of every parameter its memory layout, which fused AdamW takes for granted.

    The state in a checkpoint of a sharded U-Net is contiguous, for example, but its convolutions are channels-last.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class OptimizerMixin(LightningModule):
    """Trains with AdamW and a warm-up; steps whose loss or gradient is not finite are skipped, see `StepGuard`.

    A `training_step` must pass its loss through `guard.watch`. Checkpoints contain the counters of skipped steps. No
    checkpoint is written if a weight is not finite, so that earlier checkpoints are kept.

    Args:
        optimizer: learning rate, weight decay and the like.
    """

    def __init__(self, optimizer: OptimizerSettings):
        super().__init__()
        self.optimizer = optimizer
        self.guard = StepGuard(optimizer.stop_after_bad_steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return fused AdamW and a linear warm-up that counts optimizer steps."""
        chosen = self.optimizer
        optimizer = torch.optim.AdamW(
            self.parameters(), chosen.learning_rate, betas=chosen.betas, weight_decay=chosen.weight_decay, fused=True
        )
        optimizer.register_load_state_dict_post_hook(lay_out_like_parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_factor, steps=chosen.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Apply the current hyperparameters; loading the optimizer state has restored those of the checkpoint."""
        self.guard.start_fit()
        schedule = self.lr_schedulers()
        if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            return  # a subclass that configures other optimizers must do this itself
        rate, factor = self.optimizer.learning_rate, partial(warmup_factor, steps=self.optimizer.warmup_steps)
        schedule.base_lrs, schedule.lr_lambdas = [rate], [factor]
        for group in schedule.optimizer.param_groups:
            group |= {"betas": self.optimizer.betas, "weight_decay": self.optimizer.weight_decay}
            group |= {"initial_lr": rate, "lr": rate * factor(schedule.last_epoch)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a non-finite step, stop after too many in a row, and log their number and the norm before clipping."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        step, epoch = self.global_step + 1, self.current_epoch
        last = self.guard.check(optimizer, self, step=step, epoch=epoch, scaler=scaler)
        if last is not None:
            folder = Path(self.trainer.default_root_dir) / DUMP_FOLDER
            last.stop_run(folder, self, self._files, rank=self.global_rank, seed=getattr(self, "seed", None))
        if step % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            self.log("train/gradient_norm", self.guard.norm)
            skipped, in_a_row, overflows = self.guard.counts.float()
            self.log_dict({"train/skipped_steps": skipped, "train/skipped_in_a_row": in_a_row})
            if scaler is not None:
                self.log("train/overflowed_steps", overflows)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip with the norm that is already computed; Lightning refuses to clip fused steps under mixed precision."""
        if not gradient_clip_val:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, float(gradient_clip_val))
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, float(gradient_clip_val), self.guard.norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the skipped-step counters; raise ValueError if a weight is not finite."""
        check_finite(self.named_parameters(), self.device)
        checkpoint[COUNTERS_KEY] = self.guard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the skipped-step counters."""
        self.guard.restore(checkpoint.get(COUNTERS_KEY, {}))

    def _files(self, indices: Sequence[int]) -> list[str] | None:
        """Return the file names of training images, or None if the images have no files."""
        data: Any = getattr(self.trainer, "datamodule", None)
        split: Any = data.dataset("train") if hasattr(data, "dataset") else None
        return [str(split.name(index)) for index in indices] if hasattr(split, "name") else None
