"""The base of what is measured of a model: when, and where the numbers go."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asyncdiff.callbacks.every_n_steps import EveryNSteps
from asyncdiff.callbacks.progress_bar import print_above_bar
from asyncdiff.callbacks.throughput import untimed
from asyncdiff.training.module import AsyncDiffusion


class PeriodicMetric(Callback):
    """Measures every `every_n_steps` optimiser steps and at the end of training, and in `validate` and `test`.

    All processes take part. The numbers are logged under their tags, and kept in `results` for whoever prints them;
    `details` go to the loggers only.

    Args:
        name: tells callbacks of one kind apart.
        every_n_steps: optimiser steps between two measurements; 0 measures at the end of training only.
    """

    def __init__(self, name: str, every_n_steps: int = 0):
        self.name = name
        self.every_n_steps = every_n_steps
        self.results: dict[str, float] = {}
        self.details: dict[str, float] = {}
        self._schedule = EveryNSteps(every_n_steps)
        self._last_step = -1

    @abstractmethod
    def measure(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """The numbers by their tags, equal on all processes."""

    def setup(self, trainer: Trainer, pl_module: AsyncDiffusion, stage: str) -> None:  # type: ignore[override]
        """Refuse another measurement of the same name, whose numbers would be mixed with these."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and isinstance(other, PeriodicMetric) and other.state_key == self.state_key:
                raise ValueError(
                    f"names of {type(self).__name__} callbacks must differ, got {self.name!r} twice: give each a name"
                )

    @property
    def state_key(self) -> str:
        """Several of one kind are several callbacks."""
        return f"{type(self).__name__}{{name={self.name}}}"

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps, without the numbers of an earlier fit."""
        self.results, self.details, self._last_step = {}, {}, -1
        self._schedule.start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsyncDiffusion, *_: Any) -> None:  # type: ignore[override]
        """Measure when it is due."""
        if self._schedule.due(trainer):
            self._measure(trainer, pl_module)
            self._write(trainer)
            pl_module.log_dict(self.results, logger=False)  # for callbacks that monitor it

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Measure the result, unless the last step has just done so."""
        if trainer.global_step != self._last_step:
            print_above_bar(trainer, f"measuring: {self.name or type(self).__name__.lower()}")
            self._measure(trainer, pl_module)
            self._write(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Measure a trained model; the validations within a training are left alone."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._measure(trainer, pl_module)
            self._report(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Measure a trained model."""
        self._measure(trainer, pl_module)
        self._report(trainer, pl_module)

    def _measure(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        self._last_step = trainer.global_step
        with untimed(trainer):
            self.results |= self.measure(trainer, module)

    def _write(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({**self.results, **self.details}, step=trainer.global_step)

    def _report(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        """What Lightning prints as its table, and logs, and what is logged besides."""
        module.log_dict(self.results, sync_dist=True)  # equal on all processes already
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # the checkpoint's, see `AsyncDiffusion`
        for logger in trainer.loggers:
            logger.log_metrics(self.details, step=step)
