"""Networks that take a noise level per patch: DiT and U-Net."""

from asyncdiff.networks.dit import DiT
from asyncdiff.networks.unet import UNet

__all__ = ["DiT", "UNet"]
