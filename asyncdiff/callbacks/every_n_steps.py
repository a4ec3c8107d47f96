"""Schedule of actions by optimizer steps, and the base class of callbacks that act every N steps."""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer

from asyncdiff.checks import at_least
from asyncdiff.training.lightning_module import AsyncDiffusion


class EveryNSteps:
    """Schedule of an action at every `interval`-th optimizer step, whatever the gradient accumulation.

    The step at which the schedule starts, as in a resumed run, is skipped.

    Args:
        interval: number of optimizer steps; 0 means never.
    """

    def __init__(self, interval: int):
        at_least("every_n_steps", interval, 0, "set a number of optimizer steps, or 0 for the end of training only")
        self.interval = interval
        self._seen = 0

    def start(self, trainer: Trainer) -> None:
        """Start counting at the trainer's current step, also in a resumed run."""
        self._seen = trainer.global_step

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether the trainer has just completed a step at which the action is due; call it once per batch."""
        step = trainer.global_step
        new, self._seen = step != self._seen, step
        return bool(self.interval) and new and step % self.interval == 0


class PeriodicCallback(Callback, ABC):
    """Does something every `every_n_steps` optimizer steps and at the end of training, on all processes.

    Args:
        name: name that distinguishes callbacks of one class.
        every_n_steps: number of optimizer steps between two runs; 0 runs only at the end of training.
    """

    def __init__(self, name: str, every_n_steps: int):
        self.name = name
        self.every_n_steps = every_n_steps
        self._schedule = EveryNSteps(every_n_steps)
        self._last_step = -1

    @abstractmethod
    def run(self, trainer: Trainer, module: AsyncDiffusion) -> None:
        """Do it."""

    def on_train_start(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Start counting steps."""
        self._last_step = -1
        self._schedule.start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsyncDiffusion, *_: Any) -> None:  # type: ignore[override]
        """Run every `every_n_steps` optimizer steps."""
        if self._schedule.is_due(trainer):
            self._last_step = trainer.global_step
            self.run(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: AsyncDiffusion) -> None:  # type: ignore[override]
        """Run with the trained model, unless this happened after the last step."""
        if trainer.global_step != self._last_step:
            self.run(trainer, pl_module)
