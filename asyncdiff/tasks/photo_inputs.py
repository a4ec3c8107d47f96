"""Load photos at the size that a model needs, with masks of known pixels or maps of noise levels."""

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asyncdiff.memory import available_memory, check_memory
from asyncdiff.noise import masks
from asyncdiff.noise.masks import Mask
from asyncdiff.shapes import known_patches
from asyncdiff.tasks.arguments import SUFFIXES, Fit, format_size, image_files, photo_files
from asyncdiff.tasks.photos import (
    PhotoFit,
    check_same_shape,
    fit_levels,
    fit_photo,
    fit_photo_and_mask,
    plan_fit,
    read_levels,
    read_mask,
    read_photo,
    to_model,
    warn,
)
from asyncdiff.tasks.pixel_space import PixelSpace
from asyncdiff.tasks.requests import Photo

BYTES_PER_PIXEL = 4  # and channel, of a photo that is loaded


def load_photos(
    where: str,
    space: PixelSpace,
    *,
    size: tuple[int, int],
    fit: Fit,
    mask: Mask | Path | None = None,
    mask_is_unknown: bool = False,
    mask_seed: int = 0,
    levels: float | Path | None = None,
) -> list[Photo]:
    """Load photos with their masks or levels; without either, all pixels are known.

    Args:
        where: file, folder or pattern.
        space: pixels of the model that the photos are for.
        size: (height, width) in pixels that photos are resized and cropped to.
        fit: how photos are resized and cropped, see `asyncdiff.tasks.photos.plan_fit`.
        mask: mask rule, image file, or folder of files named like the photos.
        mask_is_unknown: whether the mask marks unknown pixels instead of known ones.
        mask_seed: seed of random masks; photo i uses mask_seed + i.
        levels: noise levels that pixels start from, instead of a mask: one level for all pixels, a grayscale image
            file, or a folder of files named like the photos.

    Returns:
        The photos, in the order of their files.
    """
    photos = []
    files = photo_files("image", where)
    if fit != "keep":  # whose size is known before it is read
        each, available = BYTES_PER_PIXEL * space.window[0] * math.prod(size), available_memory()
        remedy = f"at most {available // each} photos of {format_size(size)} fit, choose them by a pattern"
        check_memory("image", f"{len(files)} photos", each * len(files), remedy, available=available)
    for i, (file, stem) in enumerate(zip(files, _unique_names(files), strict=True)):
        pixels = read_photo(file, space.window[0])
        plan = plan_fit((pixels.shape[1], pixels.shape[2]), size, fit, space.patch)
        level_map, used = None, ""
        if levels is not None:
            level_map, used = _level_map(levels, file, plan)
        if isinstance(mask, Path):
            mask_file = _matching_file(mask, file, "mask")
            used = f", with the mask {mask_file}"
            known = read_mask(mask_file, mask_is_unknown=mask_is_unknown)
            check_same_shape(file, plan.original, mask_file, (known.shape[0], known.shape[1]))
            fitted, known = fit_photo_and_mask(pixels, known, plan)
        else:
            fitted, known = fit_photo(pixels, plan), torch.ones(plan.size, dtype=torch.bool)
            if mask is not None:
                known = mask(*plan.size, seed=mask_seed + i) != mask_is_unknown
                used = f", with the built-in mask {type(mask).__name__}"
            if level_map is not None:
                known = level_map == 0
        note = f"{file}: {plan.describe()}{used}"
        photos.append(Photo(stem, to_model(fitted), known, level_map, note=note))
    return photos


def _level_map(levels: float | Path, photo: Path, plan: PhotoFit) -> tuple[Float[Tensor, "h w"], str]:
    """Return the levels of a photo at its final size, and a note that names their file.

    Raises:
        ValueError: nothing may change.
    """
    used = ""
    if isinstance(levels, Path):
        file = _matching_file(levels, photo, "levels")
        used = f", with the levels {file}"
        read = read_levels(file)
        check_same_shape(photo, plan.original, file, (read.shape[0], read.shape[1]), "levels")
        level_map = fit_levels(read, plan)
    else:
        level_map = torch.full(plan.size, float(levels))
    if not level_map.any():
        raise ValueError(
            f"levels must be above 0 somewhere, got 0 for all of {photo.stem}: paint what may change brighter"
        )
    return level_map, used


def parse_levels(levels: str) -> float | Path:
    """Parse the argument as a number, or else as the path of an existing file or folder."""
    try:
        level = float(levels)
    except ValueError:
        path = Path(levels).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"levels must be a number, or an existing file or folder, got {levels}: check the path"
            ) from None
        return path
    if not 0 < level <= 1:
        raise ValueError(f"levels must lie in (0, 1], got {levels}: 0.5 keeps the layout, 1 regenerates everything")
    return level


def parse_mask(mask: Mask | str) -> Mask | Path:
    """Return the path of an existing file or folder, or else the mask rule with that name."""
    if not isinstance(mask, str):
        return mask
    path = Path(mask).expanduser()
    if path.exists() and mask in masks.MASKS:
        raise ValueError(
            f"mask must name either a file or a mask set, got {mask}, which is both: write ./{mask} for the file, or "
            "rename it"
        )
    if path.exists():
        return path
    if path.suffix.lower() in SUFFIXES or path.name != mask:
        raise FileNotFoundError(
            f"mask must be an existing file or folder, or the name of a mask set, got {mask}: check the path"
        )
    return masks.mask_by_name(mask)


def check_masks(photos: Sequence[Photo], space: PixelSpace) -> None:
    """Raise ValueError if all pixels of a photo are known; warn if no pixel, latent or patch is fully known."""
    masks = {photo.name: photo.known for photo in photos}
    if complete := [name for name, known in masks.items() if known.all()]:
        raise ValueError(
            f"mask must leave some pixels unknown, got a mask in which all of {complete[0]} is known: "
            "white means known; set mask_is_unknown if it means unknown"
        )
    latent, patch = (space.factor, space.factor), space.patch
    if without_known := [name for name, known in masks.items() if not known.any()]:
        warn(f"no pixel of {_format_names(without_known)} is known: the results do not depend on it")
    if without_latent := [name for name, known in masks.items() if known.any() and not _any_cell(known, latent)]:
        warn(
            f"no latent of {format_size(latent)} pixels is fully known in {_format_names(without_latent)}: "
            "known pixels are copied into the results, but do not influence the other pixels"
        )
    if without_patch := [n for n, known in masks.items() if _any_cell(known, latent) and not _any_cell(known, patch)]:
        warn(
            f"no patch of {format_size(patch)} pixels is fully known in {_format_names(without_patch)}: "
            "known pixels are restored at every step, which guides the network less than known patches"
        )


def _any_cell(known: Bool[Tensor, "h w"], size: tuple[int, int]) -> bool:
    """Return whether all pixels of any cell of (height, width) `size` are known."""
    grid = (known.shape[0] // size[0], known.shape[1] // size[1])
    return bool(known_patches(known[None], grid).any())


def _matching_file(where: Path, photo: Path, name: str) -> Path:
    """Return the path itself, or if it is a folder, the file in it that is named like the photo.

    Raises:
        ValueError: there is not exactly one such file, or it is the photo itself.
    """
    files = [where]
    if where.is_dir():
        files = [file for file in image_files(where) if file.stem == photo.stem]
    if len(files) != 1:
        raise ValueError(
            f"{name} folder {where} must contain exactly one image file named {photo.stem}, got {len(files)}: "
            f"name one file like the photo {photo}"
        )
    if files[0].exists() and files[0].samefile(photo):
        raise ValueError(f"{name} must be another file than its photo, got {photo} for both: choose that of the {name}")
    return files[0]


def _unique_names(files: Sequence[Path]) -> list[str]:
    """Return the stems of the files, with a number appended to duplicates."""
    stems, counts = {file.stem for file in files}, dict[str, int]()
    names = dict[str, None]()  # in order, and found at once
    for file in files:
        name = file.stem
        if name in names:
            free = ((k, f"{name}-{k}") for k in count(counts.get(name, 2)))
            last, name = next((k, other) for k, other in free if other not in stems and other not in names)
            counts[file.stem] = last + 1
        names[name] = None
    return list(names)


def _format_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} photos, such as {names[0]}"
