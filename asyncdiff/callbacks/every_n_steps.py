"""When something is due in a training that counts optimiser steps."""

from lightning.pytorch import Trainer

from asyncdiff.checks import at_least


class EveryNSteps:
    """True once at every `interval`-th optimiser step, however many batches make a step; never at the step it starts.

    Args:
        interval: 0 is never.
    """

    def __init__(self, interval: int):
        at_least("every_n_steps", interval, 0, "give a number of optimiser steps, or 0 for the end of training only")
        self.interval = interval
        self._seen = 0

    def start(self, trainer: Trainer) -> None:
        """Count from where the trainer is, also after a resume."""
        self._seen = trainer.global_step

    def due(self, trainer: Trainer) -> bool:
        """Whether the trainer has just made a step that is a multiple of the interval; ask once per batch."""
        step = trainer.global_step
        new, self._seen = step != self._seen, step
        return bool(self.interval) and new and step % self.interval == 0


def log_interval(trainer: Trainer) -> EveryNSteps:
    """The schedule of the trainer's own `log_every_n_steps`, started."""
    schedule = EveryNSteps(max(trainer.log_every_n_steps, 1))  # type: ignore[attr-defined]
    schedule.start(trainer)
    return schedule
