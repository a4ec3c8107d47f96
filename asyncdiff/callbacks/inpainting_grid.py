"""Draw a grid of inpainted images: masked input, result and ground truth."""

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
from asyncdiff.training.lightning_module import AsyncDiffusion


class InpaintingGrid(PeriodicImage):
    """Inpaints held-out images without class labels and draws the masked input, result and ground truth of each.

    For a latent diffusion model the mask applies to latents, and all three images are decoded.

    Args:
        mask: known pixels; the left half by default.
        count: number of images.
        columns: number of examples per row, three images each.
        sampler: sampler of the images; None means the model's own.
        every_n_steps: number of optimizer steps between images; 0 draws only at the end of training.
        name: name of the files and of the TensorBoard tag.
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
        super().__init__(name, every_n_steps, count, sampler)
        at_least("columns", columns, 1, "set the number of examples per row")
        self.mask = mask or Half()
        self.columns = columns

    def draw(self, trainer: Trainer, module: AsyncDiffusion) -> RGBImage:
        """Return the grid."""
        truth = validation_batch(trainer, self.count)["image"]
        known = self.mask.per_image(truth.shape[2], truth.shape[3], seeds=range(len(truth)))

        def results(indices: Sequence[int]) -> Tensor:
            own = list(indices)
            inpainted = module.inpaint(truth[own], known[own], seeds=own, sampler=self.sampler)
            return module.decode(inpainted)

        result = run_distributed(trainer, len(truth), results)
        originals = run_distributed(trainer, len(truth), lambda indices: module.decode(truth[list(indices)]))
        color = originals.expand(-1, 3, -1, -1) if originals.shape[1] == 1 else originals
        triples = torch.stack([paint_unknown(color, known), result.expand_as(color), color], dim=1)
        return tile_images(triples.flatten(0, 1), columns=3 * self.columns)


def paint_unknown(images: Float[Tensor, "b 3 h w"], known: Bool[Tensor, "*m mh mw"]) -> Float[Tensor, "b 3 h w"]:
    """Paint the unknown pixels of RGB images in one color.

    Args:
        images: values in [-1, 1].
        known: True = known; one mask for all images or one per image, at the resolution of pixels or latents.

    Returns:
        The painted images.
    """
    paint = torch.tensor(UNKNOWN_COLOR, dtype=images.dtype)[None, :, None, None] / 127.5 - 1
    known = known if known.ndim == 3 else known[None]
    return torch.where(to_pixels(known, (images.shape[2], images.shape[3])), images, paint)
