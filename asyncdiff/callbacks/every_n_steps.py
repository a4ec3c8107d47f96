"""Schedule that counts optimizer steps."""

from lightning.pytorch import Trainer

from asyncdiff.checks import at_least


class EveryNSteps:
    """Schedule that is due once at every `interval`-th optimizer step, independent of gradient accumulation.

    It is never due at the step at which it starts.

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

    def due(self, trainer: Trainer) -> bool:
        """Return whether the trainer has just made a step that is a multiple of the interval; call once per batch."""
        step = trainer.global_step
        new, self._seen = step != self._seen, step
        return bool(self.interval) and new and step % self.interval == 0


def log_interval(trainer: Trainer) -> EveryNSteps:
    """Return a started schedule of the trainer's `log_every_n_steps`."""
    schedule = EveryNSteps(max(trainer.log_every_n_steps, 1))  # type: ignore[attr-defined]
    schedule.start(trainer)
    return schedule
