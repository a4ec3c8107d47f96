"""Networks conditioned on one noise level per patch: `DiT` and `UNet`."""

from asyncdiff.networks.dit import DiT
from asyncdiff.networks.unet import UNet

__all__ = ["DiT", "UNet"]
