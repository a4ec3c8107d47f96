"""Data modules for image models; batches are {"image": (b, c, h, w) in [-1, 1], "label", "index", "key"}."""

from datamodules.arrays import Arrays
from datamodules.base import Batch, ImageDataModule, ImageDataset
from datamodules.crops import Crops
from datamodules.digits import Digits
from datamodules.edm_latents import EdmLatents
from datamodules.edm_zips import EdmZip
from datamodules.hugging_face import HuggingFace
from datamodules.image_folder import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.imagenet64 import ImageNet64
from datamodules.latents import LatentCache
from datamodules.lsun import Lsun
from datamodules.streamed import Streamed

__all__ = [
    "Arrays",
    "Batch",
    "Crops",
    "Digits",
    "EdmLatents",
    "EdmZip",
    "HuggingFace",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolder",
    "ImageNet",
    "ImageNet64",
    "LatentCache",
    "Lsun",
    "Streamed",
]
