"""Small and large runs of Lightning's Trainer with the callbacks that train.py has by default."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import Logger

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import (
    EMA,
    DueCheckpoints,
    GracefulShutdown,
    LossByLevel,
    MovedRun,
    ResumeLogging,
    StepProgressBar,
    Throughput,
)
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.randomness import seeded
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.timing import Waits, counted_waits
from datamodules.base import ImageDataModule, ImageDataset, InMemoryImages

DECAY = 0.999


class Noise(ImageDataModule):
    """Standard normal latents with labels, in memory: data that costs no time.

    Args:
        channels: number of channels.
        size: rows and columns.
        count: number of images.
        labels: number of classes, 0 for none.
        batch_size: images per step.
    """

    def __init__(self, channels: int, size: int, count: int, *, labels: int = 0, batch_size: int = 128):
        super().__init__(batch_size=batch_size)
        self.channels, self.size, self.count, self.labels = channels, size, count, labels

    def build(self) -> Mapping[Any, ImageDataset]:
        """Draw the images; all splits are the same."""
        x = torch.randn(self.count, self.channels, self.size, self.size, generator=seeded(0))
        data = InMemoryImages(x, torch.arange(self.count) % max(self.labels, 1), classes=self.labels)
        return {"train": data, "val": data, "test": data}


class Metrics(Logger):
    """Logger that keeps the values of every tag in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version of the run."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the values."""
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(float(value))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Ignore hyperparameters."""


class WaitsOfSteps(Callback):
    """Counts the waits of the host from the end of one step to the end of a later one.

    Args:
        first: number of steps that are not counted.
        last: number of the last step that is.
    """

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.waits = Waits()
        self._counting = ExitStack()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Begin or end counting."""
        if trainer.global_step == self.first:
            self.waits = self._counting.enter_context(counted_waits(pl_module.device))
        elif trainer.global_step == self.last:
            self._counting.close()
        self.waits.step = trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End counting."""
        self._counting.close()


def trainer_precision(machine: Machine) -> str:
    """Return the precision of training as the Trainer names it."""
    return {"bf16": "bf16-mixed", "float32": "32-true"}[machine.precision]


def fit(
    module: AsyncDiffusion,
    data: ImageDataModule,
    folder: Path,
    steps: int,
    options: Mapping[str, Any],
    *,
    callbacks: Sequence[Callback] = (),
    precision: str = "32-true",
    bar: bool = False,
    every: int = 50,
    resume: Path | None = None,
) -> tuple[Trainer, Metrics]:
    """Train up to a step, and return the trainer and what was logged.

    Args:
        module: model to train.
        data: data to train on.
        folder: run directory.
        steps: number of the last step.
        options: arguments of the Trainer that name the device.
        callbacks: callbacks beside the default ones and EMA, loss by level, throughput and learning rate.
        precision: precision of the Trainer.
        bar: whether to show the progress bar.
        every: number of steps between two logs.
        resume: checkpoint to resume from.
    """
    metrics = Metrics()
    default: list[Callback] = [EMA(DECAY), LossByLevel(), Throughput(), LearningRateMonitor()]
    default += [ResumeLogging(), MovedRun(), DueCheckpoints(), GracefulShutdown()]
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=steps,
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        log_every_n_steps=every,
        logger=metrics,
        callbacks=[*default, *([StepProgressBar()] if bar else []), *callbacks],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=bar,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        **options,
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # of the bar
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
    return trainer, metrics
