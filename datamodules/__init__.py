"""Data modules for image models; batches are {"image": (b, c, h, w) in [-1, 1], "label", "index", "key"}.

Importing the package is fast; the first use of a class imports all of them, so that files can use bare class names.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.classes import (
        Arrays,
        Batch,
        Crops,
        Digits,
        EdmLatents,
        EdmZip,
        HuggingFace,
        ImageDataModule,
        ImageDataset,
        ImageFolder,
        ImageNet,
        ImageNet64,
        LatentCache,
        Lsun,
        Streamed,
    )

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datamodules import classes

    return getattr(classes, name)
