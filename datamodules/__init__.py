"""Data for image models: batches {"image": (b, c, h, w) in [-1, 1], "label", "index", "key"}."""

from datamodules.arrays import Arrays
from datamodules.base import Batch, ImageDataModule, ImageDataset
from datamodules.crops import Crops
from datamodules.digits import Digits
from datamodules.image_folder import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.imagenet64 import ImageNet64
from datamodules.latents import LatentCache

__all__ = [
    "Arrays",
    "Batch",
    "Crops",
    "Digits",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolder",
    "ImageNet",
    "ImageNet64",
    "LatentCache",
]
