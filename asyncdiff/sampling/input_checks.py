"""Checks of what samplers are called with; their errors name the argument, the rule and the remedy."""

from collections.abc import Sequence

import torch

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.shapes import Image, KnownPixels, Labels, LevelMap


def check_label(denoiser: DenoiserLike, label: Labels | None) -> None:
    """Raise ValueError unless the labels are classes of the denoiser; read on the host."""
    null = getattr(denoiser, "null_label", None)
    if label is None or null is None:
        return
    if label.dtype != torch.int64:
        raise ValueError(f"label must be int64, one class per image, got {label.dtype}: use label.long()")
    wrong = (label < 0) | (label > null)
    if wrong.any():
        raise ValueError(
            f"label must lie in 0 .. {null - 1}, or be {null} for no label, got {int(label[wrong][0])}: choose one of "
            "the model's classes"
        )


def check_inputs(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    label: Labels | None,
    image: Image | None,
    known: KnownPixels | None,
) -> None:
    """Raise ValueError unless seeds, labels, images and masks have the types and shapes of one batch."""
    if image is not None and not image.is_floating_point():
        raise ValueError(f"image must be floating point in [-1, 1], got {image.dtype}: use image / 127.5 - 1")
    if known is not None and known.dtype != torch.bool:
        raise ValueError(f"known must be bool, True = known, got {known.dtype}: use mask > 0.5")
    if not len(seeds):
        raise ValueError("seeds must contain at least one seed, got none: pass one seed per image")
    if (image is None) != (known is None):
        present, missing = ("known", "image") if image is None else ("image", "known")
        raise ValueError(
            f"image and known must be passed together, got {present} without {missing}: pass {missing}, too"
        )
    if label is not None and len(label) != len(seeds):
        raise ValueError(
            f"label needs one class per seed, got {len(label)} for {len(seeds)} seeds: pass {len(seeds)} labels"
        )
    if image is not None and tuple(image.shape) != (len(seeds), *shape):
        raise ValueError(
            f"image must have shape {(len(seeds), *shape)}, got {tuple(image.shape)}: pass one such image per seed"
        )
    if known is not None and tuple(known.shape) != (len(seeds), *shape[1:]):
        raise ValueError(
            f"known must have shape {(len(seeds), *shape[1:])}, True = known, got {tuple(known.shape)}: "
            "resize the mask to the image with nearest-neighbor interpolation"
        )


def check_levels(levels: LevelMap, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless `levels`, on the CPU, is a level map of `shape` (b, gh, gw)."""
    if tuple(levels.shape) != shape:
        raise ValueError(
            f"levels must have shape {shape}, one value per patch, got {tuple(levels.shape)}: expand or repeat them"
        )
    outside = ~((levels >= 0) & (levels <= 1))  # also True for NaN
    if outside.any():
        raise ValueError(
            f"levels must lie in [0, 1], got {float(levels[outside][0]):g}: 0 keeps a patch, 1 starts it from noise"
        )
