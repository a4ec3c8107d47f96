"""Masks of latents that are derived from masks of pixels."""

from asyncdiff.noise.masks import Known, Mask


class OnPixels(Mask):
    """Latent mask derived from a pixel mask: a latent is known if all of its pixels are.

    Args:
        mask: pixel mask.
        factor: number of pixels per latent along each side.
    """

    def __init__(self, mask: Mask, factor: int):
        self.mask = mask
        self.factor = factor
        self.seed_dependent = mask.seed_dependent

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        pixels = self.mask(height * self.factor, width * self.factor, seed=seed)
        return pixels.reshape(height, self.factor, width, self.factor).all(3).all(1)
