"""Draw a grid of images generated from the same seeds every time."""

from collections.abc import Sequence

from lightning.pytorch import Trainer
from torch import Tensor

from asyncdiff.callbacks.periodic_image import PeriodicImage, RGBImage, cycle_labels, tile_images
from asyncdiff.callbacks.split_work import run_distributed
from asyncdiff.checks import at_least, check_seeds
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.training.lightning_module import AsyncDiffusion


class SampleGrid(PeriodicImage):
    """Draws a grid of images from the seeds first_seed, first_seed + 1, ..., cycling through all classes, if any.

    Args:
        count: number of images.
        columns: number of images per row.
        first_seed: seed of the first image.
        sampler: sampler of the images; None means the model's own.
        every_n_steps: number of optimizer steps between images; 0 draws only at the end of training.
        name: name of the files and of the TensorBoard tag.
    """

    def __init__(
        self,
        count: int = 64,
        columns: int = 8,
        first_seed: int = 0,
        sampler: ImageSampler | None = None,
        every_n_steps: int = 1000,
        name: str = "samples",
    ):
        super().__init__(name, every_n_steps, count, sampler)
        at_least("columns", columns, 1, "set the number of images per row")
        check_seeds("first_seed", [first_seed])
        self.columns = columns
        self.first_seed = first_seed

    def draw(self, trainer: Trainer, module: AsyncDiffusion) -> RGBImage:
        """Return the grid."""

        def images(indices: Sequence[int]) -> Tensor:
            labels = cycle_labels(module, indices)
            generated = module.generate([self.first_seed + i for i in indices], labels, sampler=self.sampler)
            return module.decode(generated)

        return tile_images(run_distributed(trainer, self.count, images), columns=self.columns)
