"""The part of a LightningModule that moves its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from asyncdiff.checks import at_least
from asyncdiff.training.optimization.gradients import check_finite, clip_gradients
from asyncdiff.training.optimization.nonfinite_steps import StepGuard

DUMP_FOLDER = "not_finite"  # of a run, with what is told of steps that ended it
COUNTERS_KEY = "skipped_steps"  # of a checkpoint


class Warmup:
    """Factor of the learning rate: linear from 0 to 1 over `steps`.

    Args:
        steps: of the optimiser; 0 or 1 is no warm-up.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def __call__(self, step: int) -> float:
        """1 / steps at step 0, and 1 from step `steps` - 1 on."""
        return min(1.0, (step + 1) / max(self.steps, 1))


class OptimizerMixin(LightningModule):
    """Trained by AdamW with a warm-up; steps whose loss or gradient is not finite are skipped, see `StepGuard`.

    A `training_step` hands its loss to `guard.watch`. Checkpoints have the counters of skipped steps, and are refused
    if a weight is not finite: the ones before it stay.

    Args:
        learning_rate: of AdamW, after the warm-up.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate grows linearly from 0.
        stop_after_bad_steps: skipped steps in a row that end a run; 0 never does.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup_steps: int,
        stop_after_bad_steps: int,
    ):
        super().__init__()
        self.learning_rate = learning_rate
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.stop_after_bad_steps = stop_after_bad_steps
        at_least("warmup_steps", warmup_steps, 0, "0 starts at the full learning rate")
        at_least("weight_decay", weight_decay, 0, "0 is off")
        at_least("stop_after_bad_steps", stop_after_bad_steps, 0, "10 is the default, 0 never stops")
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {learning_rate}: 1e-4 is usual")
        self.guard = StepGuard(stop_after_bad_steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW in one fused kernel, with a linear warm-up that counts steps."""
        how = {"betas": self.betas, "weight_decay": self.weight_decay, "fused": True}
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, **how)  # type: ignore[arg-type]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Warmup(self.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Train with the numbers given now: a checkpoint brings back its own with the optimiser's state."""
        self.guard.start_fit()
        schedule = self.lr_schedulers()
        if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            return  # a subclass with optimisers of its own decides for itself
        schedule.base_lrs, schedule.lr_lambdas = [self.learning_rate], [Warmup(self.warmup_steps)]
        for group in schedule.optimizer.param_groups:
            group |= {"initial_lr": self.learning_rate, "betas": self.betas, "weight_decay": self.weight_decay}
            group["lr"] = self.learning_rate * schedule.lr_lambdas[0](schedule.last_epoch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step that is not finite, stop after too many; log their number and the norm before it is clipped."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        step, epoch = self.global_step + 1, self.current_epoch
        verdict = self.guard.check(optimizer, self, step=step, epoch=epoch, scaler=scaler)
        if verdict is not None:
            folder = Path(self.trainer.default_root_dir) / DUMP_FOLDER
            seed = getattr(self, "seed", None)
            verdict.stop(folder, self, self._files, rank=self.global_rank, seed=seed)
        if step % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            self.log("train/gradient_norm", self.guard.norm)
            self.log("train/skipped_steps", self.guard.skipped.float())
            self.log("train/skipped_in_a_row", self.guard.in_a_row.float())
            if scaler is not None:
                self.log("train/overflowed_steps", self.guard.overflows.float())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip with the norm at hand. Lightning would refuse to clip for a fused step under mixed precision."""
        if gradient_clip_val:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip_gradients(parameters, float(gradient_clip_val), gradient_clip_algorithm, self.guard.norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters; ValueError if a weight is not finite."""
        check_finite(self.named_parameters(), self.device)
        checkpoint[COUNTERS_KEY] = self.guard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count on."""
        self.guard.restore(checkpoint.get(COUNTERS_KEY, {}))

    def _files(self, indices: Sequence[int]) -> list[str] | None:
        """Names of the files behind training images, where the data has any."""
        data: Any = getattr(self.trainer, "datamodule", None)
        split: Any = data.dataset("train") if hasattr(data, "dataset") else None
        return [str(split.name(index)) for index in indices] if hasattr(split, "name") else None
