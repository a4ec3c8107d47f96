"""Base class of callbacks that evaluate a model during a run: handles the schedule and the logging."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asyncdiff.callbacks.every_n_steps import PeriodicCallback
from asyncdiff.callbacks.progress_bar import print_above_bar
from asyncdiff.callbacks.throughput import untimed
from asyncdiff.training.lightning_internals import logged_step
from asyncdiff.training.lightning_module import AsyncDiffusion


class PeriodicMetric(PeriodicCallback):
    """Computes metrics every `every_n_steps` optimizer steps, at the end of training, and in `validate` and `test`.

    All processes take part. The metrics are logged under their tags and stored in `results`; `details` are only logged.

    Args:
        name: name that distinguishes callbacks of one class.
        every_n_steps: number of optimizer steps between evaluations; 0 evaluates only at the end of training.
    """

    def __init__(self, name: str, every_n_steps: int = 0):
        super().__init__(name, every_n_steps)
        self.results: dict[str, float] = {}
        self.details: dict[str, float] = {}

    @abstractmethod
    def compute_metrics(self, trainer: Trainer, module: AsyncDiffusion) -> dict[str, float]:
        """Return the metrics by tag; they must be equal on all processes."""

    def setup(self, trainer: Trainer, pl_module: AsyncDiffusion, stage: str) -> None:  # type: ignore[override]
        """Raise ValueError if another callback of this class has the same name, and therefore the same tags."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and type(other) is type(self) and other.name == self.name:
                raise ValueError(
                    f"names of {type(self).__name__} callbacks must differ, got {self.name!r} twice: set `name`"
                )

    def run(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        """Compute the metrics and log them."""
        self._update_results(trainer, module)
        for logger in trainer.loggers:
            logger.log_metrics({**self.results, **self.details}, step=trainer.global_step)

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps, and discard the metrics of an earlier fit."""
        super().on_train_start(trainer, pl_module)
        self.results, self.details = {}, {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsyncDiffusion, *_: Any) -> None:  # type: ignore[override]
        """Compute the metrics every `every_n_steps` optimizer steps."""
        super().on_train_batch_end(trainer, pl_module)
        if self._last_step == trainer.global_step:
            pl_module.log_dict(self.results, logger=False)  # for callbacks that monitor a metric

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Compute the metrics of the trained model, unless they were computed after the last step."""
        if trainer.global_step != self._last_step:
            print_above_bar(trainer, f"evaluating: {self.name or type(self).__name__.lower()}")
        super().on_train_end(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Compute the metrics in `validate`, but not in validations during training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        self._report(trainer, pl_module)

    def _update_results(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        with untimed(trainer):
            self.results |= self.compute_metrics(trainer, module)

    def _report(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        """Compute the metrics; log `results`, which Lightning also prints as a table, and `details`."""
        self._update_results(trainer, module)
        module.log_dict(self.results, sync_dist=True)  # already equal on all processes, but Lightning warns without it
        for logger in trainer.loggers:
            logger.log_metrics(self.details, step=logged_step(trainer))
