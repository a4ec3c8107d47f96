"""Settings of the optimizer and of `predict`: two arguments of the LightningModule, sections of YAML files."""

from collections.abc import Sequence
from dataclasses import dataclass

from asyncdiff.checks import MAX_IMAGES, at_least, check_seeds, positive
from asyncdiff.tasks import Task


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of AdamW with a linear warm-up.

    Args:
        learning_rate: learning rate of AdamW after the warm-up.
        betas: decay rates of AdamW's running averages of the gradient and of its square.
        weight_decay: decoupled weight decay of AdamW; it is multiplied by the learning rate.
        warmup_steps: number of optimizer steps over which the learning rate grows linearly from 0.
        stop_after_bad_steps: number of consecutive steps with a NaN or infinite loss or gradient that ends the run.
            Each such step is skipped; the last one is written to a JSON file. 0 never ends the run.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_steps: int = 1000
    stop_after_bad_steps: int = 10

    def __post_init__(self) -> None:
        positive("optimizer.learning_rate", self.learning_rate, "use 1e-4, for example")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}: use [0.9, 0.99], for example"
            )
        at_least("optimizer.weight_decay", self.weight_decay, 0, "use 0 for no weight decay")
        if self.learning_rate * self.weight_decay >= 1:  # every step would multiply the weights by less than 0
            raise ValueError(
                f"optimizer.weight_decay must be below 1 / learning_rate, got {self.weight_decay}: use 0.01, for "
                "example"
            )
        at_least("optimizer.warmup_steps", self.warmup_steps, 0, "use 0 to start at the full learning rate")
        at_least("optimizer.stop_after_bad_steps", self.stop_after_bad_steps, 0, "use 10, or 0 to never stop")


@dataclass(frozen=True)
class PredictSettings:
    """Settings of `predict`: which images it generates.

    Args:
        task: task to run; None generates images from noise. Not saved in checkpoints.
        count: number of images, with seeds 0, 1, ...; if the task has photos, the number of results per photo.
        seeds: seeds of the images; None means 0 .. count - 1.
        labels: class labels of the images, cycled over the photos if the task has any, otherwise over the seeds. None
            means that images generated from noise cycle through all classes and photos are unconditional; an empty
            list means unconditional.
        batch_size: number of images per batch.
    """

    task: Task | None = None
    count: int = 64
    seeds: Sequence[int] | None = None
    labels: Sequence[int] | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least("predict.count", self.count, 1, "set the number of images", MAX_IMAGES)
        at_least("predict.batch_size", self.batch_size, 1, "set the number of images per batch")
        if (seeds := self.seeds) is not None:
            check_seeds("predict.seeds", seeds)
            if not seeds or len({*seeds}) < len(seeds):
                raise ValueError(f"predict.seeds must be different, got {list(seeds)}: use null for 0, 1, ...")
        for label in self.labels or ():
            at_least("predict.labels", label, 0, "use null for all classes in turn, [] for none")


DEFAULT_OPTIMIZER = OptimizerSettings()
DEFAULT_PREDICT = PredictSettings()
