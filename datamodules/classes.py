"""All data modules, and their base classes, for the package, which imports them on first use."""

from datamodules.arrays import Arrays as Arrays
from datamodules.base import Batch as Batch
from datamodules.base import ImageDataModule as ImageDataModule
from datamodules.base import ImageDataset as ImageDataset
from datamodules.crops import Crops as Crops
from datamodules.digits import Digits as Digits
from datamodules.edm_latents import EdmLatents as EdmLatents
from datamodules.edm_zips import EdmZip as EdmZip
from datamodules.hugging_face import HuggingFace as HuggingFace
from datamodules.image_folder import ImageFolder as ImageFolder
from datamodules.imagenet import ImageNet as ImageNet
from datamodules.imagenet64 import ImageNet64 as ImageNet64
from datamodules.latents import LatentCache as LatentCache
from datamodules.lsun import Lsun as Lsun
from datamodules.streamed import Streamed as Streamed
