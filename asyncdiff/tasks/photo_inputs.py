"""Load photos at the size that a model needs, with masks of known pixels or maps of noise levels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asyncdiff.noise import masks
from asyncdiff.noise.masks import Mask
from asyncdiff.shapes import known_patches
from asyncdiff.tasks.photos import (
    SUFFIXES,
    Fit,
    PhotoFit,
    Pixels,
    check_same_shape,
    fit_levels,
    fit_photo,
    fit_photo_and_mask,
    format_size,
    photo_files,
    plan_fit,
    read_levels,
    read_mask,
    read_photo,
    to_model,
    warn,
)


@dataclass(frozen=True)
class Photo:
    """A photo at the size that a model needs.

    Attributes:
        name: name of its file, and prefix of the images made from it.
        image: pixels in [-1, 1].
        known: True where pixels are known.
        note: description of how it was resized and cropped.
        levels: noise level that each pixel starts from, 0 = known .. 1 = pure noise; None if `known` says it all.
    """

    name: str
    image: Float[Tensor, "c h w"]
    known: Bool[Tensor, "h w"]
    note: str
    levels: Float[Tensor, "h w"] | None = None


def load_photos(
    name: str,
    where: str,
    channels: int,
    *,
    size: tuple[int, int],
    fit: Fit,
    patch: tuple[int, int],
    mask: Mask | Path | None = None,
    mask_is_unknown: bool = False,
    mask_seed: int = 0,
) -> list[Photo]:
    """Load the photos of a file, a folder or a pattern with their masks.

    Args:
        name: name of the argument, for error messages.
        where: file, folder or pattern.
        channels: number of channels, 1 or 3.
        size: (height, width) that photos are resized and cropped to.
        fit: how they are, see `asyncdiff.tasks.photos.plan_fit`.
        patch: (height, width) of a patch in pixels.
        mask: rule, file, or folder of files named like the photos; without one all pixels are known.
        mask_is_unknown: whether the mask marks unknown pixels instead of known ones.
        mask_seed: seed of a random rule for the first photo; photo i uses mask_seed + i.

    Returns:
        One entry per photo.
    """
    photos = []
    for i, (file, stem, pixels, how) in enumerate(_read(name, where, channels, size, fit, patch)):
        if isinstance(mask, Path):
            mask_file = _file_for(mask, file, "mask")
            known = read_mask(mask_file, mask_is_unknown=mask_is_unknown)
            check_same_shape(file, how.original, mask_file, (known.shape[0], known.shape[1]))
            pixels, known = fit_photo_and_mask(pixels, known, how)
        else:
            pixels, known = fit_photo(pixels, how), torch.ones(how.size, dtype=torch.bool)
            if mask is not None:
                known = mask(*how.size, seed=mask_seed + i) != mask_is_unknown
        photos.append(Photo(stem, to_model(pixels), known, f"{file}: {how.describe()}"))
    return photos


def load_photos_to_edit(
    name: str,
    where: str,
    channels: int,
    *,
    size: tuple[int, int],
    fit: Fit,
    patch: tuple[int, int],
    levels: float | Path,
) -> list[Photo]:
    """Load the photos of a file, a folder or a pattern with the noise levels that their pixels start from.

    Args:
        name: name of the argument, for error messages.
        where: file, folder or pattern.
        channels: number of channels, 1 or 3.
        size: (height, width) that photos are resized and cropped to.
        fit: how they are, see `asyncdiff.tasks.photos.plan_fit`.
        patch: (height, width) of a patch in pixels.
        levels: one level for all pixels, a file of gray values, or a folder of files named like the photos.

    Returns:
        One entry per photo.
    """
    photos = []
    for file, stem, pixels, how in _read(name, where, channels, size, fit, patch):
        if isinstance(levels, Path):
            level_file = _file_for(levels, file, "levels")
            level_map = read_levels(level_file)
            check_same_shape(file, how.original, level_file, (level_map.shape[0], level_map.shape[1]), "levels")
            level_map = fit_levels(level_map, how)
        else:
            level_map = torch.full(how.size, float(levels))
        if not level_map.any():
            raise ValueError(f"levels must leave something to change, got 0 all over {stem}: paint it brighter")
        photos.append(
            Photo(stem, to_model(fit_photo(pixels, how)), level_map == 0, f"{file}: {how.describe()}", level_map)
        )
    return photos


def _read(
    name: str, where: str, channels: int, size: tuple[int, int], fit: Fit, patch: tuple[int, int]
) -> Iterator[tuple[Path, str, Pixels, PhotoFit]]:
    """Yield each photo's file, its name in results, its pixels, and how they are resized and cropped."""
    files = photo_files(name, where)
    for file, stem in zip(files, _unique_names(files), strict=True):
        pixels = read_photo(file, channels)
        yield file, stem, pixels, plan_fit((pixels.shape[1], pixels.shape[2]), size, fit, patch)


def parse_levels(levels: str) -> float | Path:
    """Convert the argument to a number, or else to an existing file or folder; ValueError if it is neither."""
    try:
        level = float(levels)
    except ValueError:
        path = Path(levels).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"levels must be a number, a file or a folder, got {levels}, which does not exist"
            ) from None
        return path
    if not 0 < level <= 1:
        raise ValueError(f"levels must lie in (0, 1], got {levels}: 0.5 keeps the layout, 1 regenerates everything")
    return level


def parse_mask(mask: Mask | str) -> Mask | Path:
    """Convert the argument to an existing file or folder, or else to the rule of that name; ValueError if neither."""
    if not isinstance(mask, str):
        return mask
    path = Path(mask).expanduser()
    if path.exists():
        return path
    if path.suffix.lower() in SUFFIXES or path.name != mask:
        raise FileNotFoundError(f"mask must be a file, a folder or the name of a set, got {mask}, which does not exist")
    return masks.mask_by_name(mask)


def check_masks(photos: Sequence[Photo], patch: tuple[int, int], factor: int = 1) -> None:
    """Raise ValueError if all pixels of a photo are known; warn if no patch or no latent is.

    Args:
        photos: photos with their masks.
        patch: (height, width) of a patch in pixels.
        factor: number of pixels per latent along each side; 1 for a model of pixels.
    """
    for photo in photos:
        if photo.known.all():
            raise ValueError(
                f"mask must leave unknown pixels, got one that covers all of {photo.name}: "
                "white means known; set mask_is_unknown if it means unknown"
            )
    nothing = [photo.name for photo in photos if not photo.known.any()]
    if nothing:
        warn(f"no pixel of {_some(nothing)} is known: results do not depend on it")
    shown = [p for p in photos if p.known.any()]
    without_latent = [p.name for p in shown if not known_patches(p.known[None], _grid(p, (factor, factor))).any()]
    if without_latent:
        warn(
            f"no latent of {format_size((factor, factor))} pixels is fully known in {_some(without_latent)}: "
            "known pixels are copied into the results, which otherwise do not depend on them"
        )
    without_patch = [
        p.name
        for p in shown
        if not known_patches(p.known[None], _grid(p, patch)).any() and p.name not in without_latent
    ]
    if without_patch:
        warn(
            f"no patch of {format_size(patch)} pixels is fully known in {_some(without_patch)}: "
            "single known pixels are restored at every step, which guides the network less than known patches"
        )


def _grid(photo: Photo, patch: tuple[int, int]) -> tuple[int, int]:
    return photo.known.shape[0] // patch[0], photo.known.shape[1] // patch[1]


def _file_for(where: Path, photo: Path, name: str) -> Path:
    """Return the file itself, or the file of a folder that is named like the photo."""
    if not where.is_dir():
        return where
    files = sorted(file for file in where.iterdir() if file.stem == photo.stem and file.suffix.lower() in SUFFIXES)
    if len(files) != 1:
        raise ValueError(f"{name} must contain one file named {photo.stem} for {photo}, got {len(files)} in {where}")
    return files[0]


def _unique_names(files: Sequence[Path]) -> list[str]:
    """Return the stems of the files, with a number appended to repeated ones."""
    stems, names = {file.stem for file in files}, []
    for file in files:
        name = file.stem
        if name in names:
            free = (f"{name}-{k}" for k in count(2))
            name = next(other for other in free if other not in stems and other not in names)
        names.append(name)
    return names


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} photos, such as {names[0]}"
