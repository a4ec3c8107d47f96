"""Schedule of actions by optimizer steps."""

from lightning.pytorch import Trainer

from asyncdiff.checks import at_least


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


def log_interval(trainer: Trainer) -> EveryNSteps:
    """Return a schedule with the trainer's `log_every_n_steps`, already started."""
    schedule = EveryNSteps(max(trainer.log_every_n_steps, 1))  # type: ignore[attr-defined]
    schedule.start(trainer)
    return schedule
