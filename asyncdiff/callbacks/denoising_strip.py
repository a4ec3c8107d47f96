"""Draw a strip of a sampling trajectory: noisy image and level map, from pure noise to the result."""

import torch
from lightning.pytorch import Trainer

from asyncdiff.callbacks.periodic_image import PeriodicImage, RGBImage, cycle_labels, tile_images
from asyncdiff.callbacks.validation_images import validation_batch
from asyncdiff.checks import at_least
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.sampling import engine
from asyncdiff.sampling.samplers import ImageSampler, Sampler
from asyncdiff.sampling.trajectories import Frame
from asyncdiff.shapes import to_pixels
from asyncdiff.training.lightning_module import AsyncDiffusion

MAX_FRAMES = 1000  # states side by side in one picture


class DenoisingStrip(PeriodicImage):
    """Draws two rows per image at evenly spaced sampling steps: x_t, and its level map (black = clean, white = noise).

    For a latent diffusion model x_t is decoded, noise included.

    Args:
        count: number of images.
        frames: number of states per image, including the first and the last.
        mask: known pixels; if set, held-out images are inpainted, otherwise images are generated from noise.
        sampler: sampler of the images; None means a `Sampler` along an AsyncPatch path, whose patches differ in level.
        every_n_steps: number of optimizer steps between images; 0 draws only at the end of training.
        name: name of the files and of the TensorBoard tag.
    """

    def __init__(
        self,
        count: int = 2,
        frames: int = 9,
        mask: Mask | None = None,
        sampler: ImageSampler | None = None,
        every_n_steps: int = 0,
        name: str = "denoising",
    ):
        super().__init__(name, every_n_steps, count, sampler or Sampler(AsyncPatch()))
        at_least("frames", frames, 2, "the first and the last state are always shown", MAX_FRAMES)
        self.frames = frames
        self.mask = mask

    def draw(self, trainer: Trainer, module: AsyncDiffusion) -> RGBImage:
        """Return the strip; every process draws all of it, since it is small."""
        frames = self._sample_frames(trainer, module)
        last = len(frames) - 1
        selected = [frames[round(i * last / (self.frames - 1))] for i in range(self.frames)]
        rows = []
        for i in range(len(selected[0].x_t)):  # fewer than `count` if fewer images are held out
            images = module.decode(torch.stack([f.x_t[i] for f in selected]))
            rows.append(tile_images(images, columns=self.frames))
            maps = torch.cat([to_pixels(f.t[i : i + 1], (images.shape[2], images.shape[3])) for f in selected])
            rows.append(tile_images(maps, columns=self.frames, low=0.0))
        return torch.cat(rows, dim=1)

    def _sample_frames(self, trainer: Trainer, module: AsyncDiffusion) -> list[Frame]:
        if self.mask is None:
            batch = engine.ImageBatch(range(self.count), cycle_labels(module, range(self.count)))
        else:
            image = validation_batch(trainer, self.count)["image"]
            known = self.mask(*module.shape[1:]).expand(len(image), *module.shape[1:])
            batch = engine.ImageBatch(range(len(image)), image=image, known=known)
        with module.sampling_context():
            return list(engine.frames(module.denoiser, self.sampler or module.sampler, batch, module.shape))
