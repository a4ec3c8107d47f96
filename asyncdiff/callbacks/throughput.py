"""Log training throughput: images per second, time by phase, FLOP/s and memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from asyncdiff.callbacks.every_n_steps import EveryNSteps
from asyncdiff.callbacks.flops import peak_flops, training_flops
from asyncdiff.callbacks.phase_timer import CudaClock, PhaseTimer, WallClock
from asyncdiff.training.lightning_module import AsyncDiffusion

DATA, FORWARD, BACKWARD, OPTIMIZER = PHASES = ("data", "forward", "backward", "optimizer")


class Throughput(Callback):
    """Logs training throughput and the time of each phase of a step, every `log_every_n_steps` of the trainer.

    | tag | value, averaged since the last log |
    |---|---|
    | train/images_per_second | over all processes, which are assumed to have equal batches |
    | train/ms_step | milliseconds per optimizer step, over all its batches if gradients are accumulated |
    | train/ms_data | part of ms_step: from the end of a batch until the next one is on the device |
    | train/ms_forward | part of ms_step: the training step up to the loss |
    | train/ms_backward | part of ms_step: the gradients |
    | train/ms_optimizer | part of ms_step: zeroing and clipping the gradients, the update, the learning rate |
    | train/tflops | 1e12 FLOP/s per device, counted by `training_flops` |
    | train/mfu | model FLOPs utilization: train/tflops relative to the device's peak, on GPUs whose peak is known |
    | train/memory_gb | on CUDA: peak allocated memory in 1e9 bytes, sampling and validation included |

    The four parts add up to ms_step. What other callbacks do at the end of a batch counts as optimizer time if they
    come before this one in the list of callbacks, as `EMA` does, and as data time if they come after it. Waiting for
    other processes, which Lightning synchronizes between batches, counts as data time. Validation, checkpoints, the
    logging of this callback and everything inside `untimed` (sample grids, metrics) are excluded; weights-only
    checkpoints, for which Lightning calls no callback, count as data time. The first values include warm-up, and
    compilation if the network is compiled.

    On CUDA all times are measured on the device, and only logging synchronizes with it. Lightning's ThroughputMonitor
    synchronizes after every batch, does not split the step, and leaves counting FLOPs to the module.
    """

    def __init__(self) -> None:
        self._timer = PhaseTimer(WallClock())
        self._schedule = EveryNSteps(0)
        self._images = 0  # on this process since the last log
        self._step = 0
        self._flops: float | None = None  # per image
        self._peak: float | None = None
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps."""
        self._timer = PhaseTimer(CudaClock() if pl_module.device.type == "cuda" else WallClock())
        self._schedule = EveryNSteps(max(trainer.log_every_n_steps, 1))  # type: ignore[attr-defined]
        self._schedule.start(trainer)
        self._images, self._step = 0, trainer.global_step
        self._peak = peak_flops(pl_module.device, str(trainer.precision))
        # FLOPs are counted from the inputs of the first call of the network in a training step.
        self._hook = pl_module.denoiser.register_forward_pre_hook(self._count_flops, with_kwargs=True)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    # Lightning 2.6.6 fetches a batch, moves it, and calls, in automatic optimization:
    #   on_train_batch_start
    #     training_step                  ┐ inside the closure of the optimizer's step,
    #     on_before_zero_grad, zero_grad │ zeroing only at the first batch of a step
    #     on_before_backward, backward   │
    #     on_after_backward              ┘
    #     on_before_optimizer_step, clipping, update, learning rate: only at the last batch of a step
    #   on_train_batch_end
    # Then checkpoints are written, metrics are logged, or the loaders of a validation are set up and it starts.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start timing the data: the wait for the first batch."""
        self._timer.enter(DATA)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, batch: Any, batch_idx: int
    ) -> None:
        """Start timing the forward pass; after a validation the timer restarts here."""
        self._timer.enter(FORWARD)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: AsyncDiffusion, *_: Any) -> None:  # type: ignore[override]
        """End the forward pass: zeroing gradients counts as optimizer."""
        self._timer.enter(OPTIMIZER)

    def on_before_backward(self, trainer: Trainer, pl_module: AsyncDiffusion, loss: Tensor) -> None:  # type: ignore[override]
        """Start timing the backward pass."""
        self._timer.enter(BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """End the backward pass: clipping and update count as optimizer."""
        self._timer.enter(OPTIMIZER)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of this batch; log every `log_every_n_steps`."""
        self._timer.enter(DATA)
        self._images += len(batch["image"])
        if self._schedule.is_due(trainer):
            with self._timer.paused():
                self._log(trainer, pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Discard the time since the last batch, which was spent on setting up this validation."""
        self._timer.discard()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: AsyncDiffusion, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Stop the timer until the next batch: no hook tells when the file has been written."""
        self._timer.discard()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Stop the timer between two epochs."""
        self._timer.discard()

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        self._remove_hook()

    def on_exception(self, trainer: Trainer, pl_module: AsyncDiffusion, exception: BaseException) -> None:  # type: ignore[override]
        self._remove_hook()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _count_flops(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = len(args[0]) if args else 0
        if self._hook is None or not images or not torch.is_grad_enabled():
            return
        self._hook.remove()
        with self._timer.paused():
            flops = training_flops(denoiser, args, kwargs)
        self._flops = None if flops is None else flops / images

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        seconds, steps = self._timer.seconds(), trainer.global_step - self._step
        total = sum(seconds.values())
        metrics = {"train/images_per_second": self._images * trainer.world_size / total}
        metrics["train/ms_step"] = 1000 * total / steps
        metrics |= {f"train/ms_{phase}": 1000 * seconds[phase] / steps for phase in PHASES}
        if self._flops is not None:
            rate = self._flops * self._images / total  # of one device
            metrics["train/tflops"] = rate / 1e12
            if self._peak is not None:
                metrics["train/mfu"] = rate / self._peak
        if device.type == "cuda":
            metrics["train/memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        self._images, self._step = 0, trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


@contextmanager
def untimed(trainer: Trainer) -> Iterator[None]:
    """Exclude the work inside from the timing of `Throughput`, if the trainer has this callback."""
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    if throughput is None:
        yield
        return
    with throughput._timer.paused():
        yield
