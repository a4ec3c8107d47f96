"""A figure of inpaintings: what the model is shown, what it makes of it, and what it was."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import Trainer
from torch import Tensor

from asyncdiff.callbacks.periodic_image import PeriodicImage, RGBImage, tile_images
from asyncdiff.callbacks.split_work import run_distributed
from asyncdiff.callbacks.validation_images import validation_batch
from asyncdiff.checks import at_least
from asyncdiff.noise.masks import Half, Mask
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import to_pixels
from asyncdiff.tasks.contact_sheet import UNKNOWN_COLOR
from asyncdiff.training.module import AsyncDiffusion


class InpaintingGrid(PeriodicImage):
    """Held-out images in three columns a case: masked input, result, truth. Labels are not told.

    Of a model of latents masks are of latents, and all that is shown is decoded, the truth, too.

    Args:
        mask: what is known; the left half by default.
        count: number of images.
        columns: cases in a row.
        sampler: the module's own by default.
        every_n_steps: optimiser steps between two drawings; 0 draws at the end only.
        name: of the files and of the TensorBoard tag.
    """

    def __init__(
        self,
        mask: Mask | None = None,
        count: int = 12,
        columns: int = 4,
        sampler: ImageSampler | None = None,
        every_n_steps: int = 1000,
        name: str = "inpainting",
    ):
        super().__init__(name, every_n_steps)
        at_least("count", count, 1, "set the images to complete")
        at_least("columns", columns, 1, "set the cases in a row")
        self.mask = mask or Half()
        self.count = count
        self.columns = columns
        self.sampler = sampler

    def draw(self, trainer: Trainer, module: AsyncDiffusion) -> RGBImage:
        """The figure."""
        truth = validation_batch(trainer, self.count)["image"]
        known = self.mask.per_image(truth.shape[2], truth.shape[3], seeds=range(len(truth)))

        def results(indices: Sequence[int]) -> Tensor:
            chosen = list(indices)
            drawn = module.inpaint(truth[chosen], known[chosen], seeds=chosen, sampler=self.sampler)
            return module.decode(drawn)

        result = run_distributed(trainer, len(truth), results)
        shown = run_distributed(trainer, len(truth), lambda indices: module.decode(truth[list(indices)]))
        colour = shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else shown
        triples = torch.stack([paint_unknown(colour, known), result.expand_as(colour), colour], dim=1)
        return tile_images(triples.flatten(0, 1), columns=3 * self.columns)


def paint_unknown(images: Float[Tensor, "b 3 h w"], known: Bool[Tensor, "*m mh mw"]) -> Float[Tensor, "b 3 h w"]:
    """Colour images with a plain colour where they are unknown.

    Args:
        images: in [-1, 1].
        known: True = known, one mask for all or one each; of latents, whose pixels go with them.
    """
    paint = torch.tensor(UNKNOWN_COLOR, dtype=images.dtype)[None, :, None, None] / 127.5 - 1
    known = known if known.ndim == 3 else known[None]
    return torch.where(to_pixels(known, (images.shape[2], images.shape[3])), images, paint)
