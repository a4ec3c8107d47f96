"""Training speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from asyncdiff.callbacks.every_n_steps import EveryNSteps, log_interval
from asyncdiff.callbacks.flops import peak_flops, training_flops
from asyncdiff.callbacks.phase_timer import PhaseTimer, WallClock, clock_for
from asyncdiff.training.module import AsyncDiffusion

DATA, FORWARD, BACKWARD, OPTIMIZER = PHASES = ("data", "forward", "backward", "optimizer")


class Throughput(Callback):
    """Logs how fast a run trains and what its time goes into, every `log_every_n_steps` of the trainer.

    | tag | what, on average since the last time |
    |---|---|
    | train/images_per_second | over all processes, taken to have equal batches |
    | train/ms_step | milliseconds of an optimiser step, with all its batches where gradients are accumulated |
    | train/ms_data | of these: from the end of a batch until the next one is on the device |
    | train/ms_forward | of these: the training step up to the loss |
    | train/ms_backward | of these: the gradients |
    | train/ms_optimizer | of these: zeroing and clipping the gradients, the update, the learning rate |
    | train/tflops | 1e12 operations per second and device that the model needs, see `training_flops` |
    | train/mfu | these as a share of the device's peak, on GPUs whose peak is known |
    | train/memory_gb | on CUDA: most bytes allocated at once, in 1e9, pictures and validation included |

    The four parts add up to the whole. What other callbacks do at the end of a batch counts under the optimiser where
    they are listed before this one, as `EMA` is, under data otherwise, and so does waiting for the other processes,
    which Lightning makes meet between two batches. Validation, checkpoints, logging of this callback and what runs
    inside `untimed` (pictures, distances) are no training and count nowhere; checkpoints of weights only, of which no
    callback is told, count under data. The first figures have the warm-up in them, and the compilation of a compiled
    network.

    On CUDA all times are the device's, and nothing waits for it but the logging; Lightning's ThroughputMonitor waits
    for it after every batch, does not split the step, and leaves counting the FLOPs to the module.
    """

    def __init__(self) -> None:
        self._timer = PhaseTimer(WallClock())
        self._schedule = EveryNSteps(0)
        self._images = 0  # of this process
        self._step = 0
        self._flops: float | None = None  # for one image
        self._peak: float | None = None
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps."""
        self._timer = PhaseTimer(clock_for(pl_module.device))
        self._schedule = log_interval(trainer)
        self._images, self._step = 0, trainer.global_step
        self._peak = peak_flops(pl_module.device, str(trainer.precision))
        # The first call of the network in a training step shows what it is called with.
        self._hook = pl_module.denoiser.register_forward_pre_hook(self._count, with_kwargs=True)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    # Lightning 2.6.6 fetches a batch, moves it, and calls, in automatic optimisation:
    #   on_train_batch_start
    #     training_step                  ┐ inside the closure of the optimiser's step,
    #     on_before_zero_grad, zero_grad │ zeroing only at the first batch of a step
    #     on_before_backward, backward   │
    #     on_after_backward              ┘
    #     on_before_optimizer_step, clipping, update, learning rate: only at the last batch of a step
    #   on_train_batch_end
    # Then checkpoints are written, or metrics logged, or a validation's loaders set up and it begins.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Wait for the first batch."""
        self._timer.enter(DATA)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there; after a validation the watch starts here."""
        self._timer.enter(FORWARD)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: AsyncDiffusion, *_: Any) -> None:  # type: ignore[override]
        """The loss is there."""
        self._timer.enter(OPTIMIZER)

    def on_before_backward(self, trainer: Trainer, pl_module: AsyncDiffusion, loss: Tensor) -> None:  # type: ignore[override]
        """The old gradients are gone."""
        self._timer.enter(BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """The gradients are there."""
        self._timer.enter(OPTIMIZER)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AsyncDiffusion, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count this batch's images, log when due."""
        self._timer.enter(DATA)
        self._images += len(batch["image"])
        if self._schedule.due(trainer):
            with self._timer.paused():
                self._log(trainer, pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """What ran since the last batch was the setting up of this validation."""
        self._timer.discard()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: AsyncDiffusion, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Nobody says when the file is written: the watch stands until the next batch."""
        self._timer.discard()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """The work between two epochs is no training."""
        self._timer.discard()

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Leave nothing behind in the module."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: AsyncDiffusion, exception: BaseException) -> None:  # type: ignore[override]
        """Leave nothing behind in the module."""
        self._leave()

    def _leave(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _count(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
        metrics |= self._flops_metrics(self._images / total)
        if device.type == "cuda":
            metrics["train/memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        self._images, self._step = 0, trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _flops_metrics(self, images_per_second: float) -> dict[str, float]:
        """Of this device, which trains on so many images per second."""
        if self._flops is None:
            return {}
        rate = self._flops * images_per_second
        metrics = {"train/tflops": rate / 1e12}
        return metrics if self._peak is None else metrics | {"train/mfu": rate / self._peak}


@contextmanager
def untimed(trainer: Trainer) -> Iterator[None]:
    """Work that is no part of the training speed."""
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    if throughput is None:
        yield
        return
    with throughput._timer.paused():
        yield
