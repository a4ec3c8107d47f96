"""Photos as models take them: read, brought to a size, with what is known of them."""

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
    Fitting,
    Pixels,
    by,
    check_same_shape,
    fitted,
    fitted_levels,
    fitted_with_mask,
    fitting,
    photo_files,
    read_levels,
    read_mask,
    read_photo,
    to_model,
    warn,
)


@dataclass(frozen=True)
class Photo:
    """A photo that a model can take.

    Attributes:
        name: of its file, and of the pictures made from it.
        image: in [-1, 1].
        known: True = known.
        note: what was done to it.
        levels: that its pixels start from, 0 = known .. 1 = drawn anew; None where `known` says all.
    """

    name: str
    image: Float[Tensor, "c h w"]
    known: Bool[Tensor, "h w"]
    note: str
    levels: Float[Tensor, "h w"] | None = None


def photos_of(
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
    """The photos of a file, a folder or a pattern.

    Args:
        name: of the argument, for refusals.
        where: the file, folder or pattern.
        channels: 1 or 3.
        size: (height, width) that photos are brought to.
        fit: how, see `asyncdiff.tasks.photos.fitting`.
        patch: (height, width) of a patch.
        mask: a rule, a file, or a folder of files named like the photos; all is known without.
        mask_is_unknown: the mask says what is unknown.
        mask_seed: seed of a random rule for the first photo.
    """
    photos = []
    for i, (file, stem, pixels, how) in enumerate(_read(name, where, channels, size, fit, patch)):
        if isinstance(mask, Path):
            drawn = _file_for(mask, file, "mask")
            known = read_mask(drawn, mask_is_unknown=mask_is_unknown)
            check_same_shape(file, how.original, drawn, (known.shape[0], known.shape[1]))
            pixels, known = fitted_with_mask(pixels, known, how)
        else:
            pixels, known = fitted(pixels, how), torch.ones(how.size, dtype=torch.bool)
            if mask is not None:
                known = mask(*how.size, seed=mask_seed + i) != mask_is_unknown
        photos.append(Photo(stem, to_model(pixels), known, f"{file}: {how.told()}"))
    return photos


def edited_of(
    name: str,
    where: str,
    channels: int,
    *,
    size: tuple[int, int],
    fit: Fit,
    patch: tuple[int, int],
    levels: float | Path,
) -> list[Photo]:
    """The photos of a file, a folder or a pattern, with how much of them is to change.

    Args:
        name: of the argument, for refusals.
        where: the file, folder or pattern.
        channels: 1 or 3.
        size: (height, width) that photos are brought to.
        fit: how, see `asyncdiff.tasks.photos.fitting`.
        patch: (height, width) of a patch.
        levels: one for all pixels, a file of grey values, or a folder of files named like the photos.
    """
    photos = []
    for file, stem, pixels, how in _read(name, where, channels, size, fit, patch):
        if isinstance(levels, Path):
            drawn = _file_for(levels, file, "levels")
            given = read_levels(drawn)
            check_same_shape(file, how.original, drawn, (given.shape[0], given.shape[1]), "levels")
            given = fitted_levels(given, how)
        else:
            given = torch.full(how.size, float(levels))
        if not given.any():
            raise ValueError(f"levels must leave something to change, got 0 all over {stem}: paint it brighter")
        photos.append(Photo(stem, to_model(fitted(pixels, how)), given == 0, f"{file}: {how.told()}", given))
    return photos


def _read(
    name: str, where: str, channels: int, size: tuple[int, int], fit: Fit, patch: tuple[int, int]
) -> Iterator[tuple[Path, str, Pixels, Fitting]]:
    """Every photo's file, its name in results, its pixels, and how they come to the size."""
    files = photo_files(name, where)
    for file, stem in zip(files, _names(files), strict=True):
        pixels = read_photo(file, channels)
        yield file, stem, pixels, fitting((pixels.shape[1], pixels.shape[2]), size, fit, patch)


def levels_for(levels: str) -> float | Path:
    """The number, or the file or folder; ValueError if it is neither."""
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
        raise ValueError(f"levels must lie in (0, 1], got {levels}: 0.5 keeps the layout, 1 draws all anew")
    return level


def mask_for(mask: Mask | str) -> Mask | Path:
    """The rule of that name, or the file or folder; ValueError if it is neither."""
    if not isinstance(mask, str):
        return mask
    path = Path(mask).expanduser()
    if path.exists():
        return path
    if path.suffix.lower() in SUFFIXES or path.name != mask:
        raise FileNotFoundError(f"mask must be a file, a folder or the name of a set, got {mask}, which does not exist")
    return masks.named(mask)


def check_masks(photos: Sequence[Photo], patch: tuple[int, int], factor: int = 1) -> None:
    """Refuse photos of which all is known; warn of those of which the network is shown no patch.

    Args:
        photos: with their masks.
        patch: (height, width) of a patch in pixels.
        factor: pixels per latent, each way; 1 for a model of pixels.
    """
    for photo in photos:
        if photo.known.all():
            raise ValueError(
                f"mask must leave something to draw, got one that knows all of {photo.name}: "
                "white is known; if it is the other way round, set mask_is_unknown"
            )
    nothing = [photo.name for photo in photos if not photo.known.any()]
    if nothing:
        warn(f"nothing is known of {_some(nothing)}: the pictures are free inventions")
    shown = [p for p in photos if p.known.any()]
    untold = [p.name for p in shown if not known_patches(p.known[None], _grid(p, (factor, factor))).any()]
    if untold:
        warn(
            f"no latent of {by((factor, factor))} pixels is wholly known of {_some(untold)}: "
            "the pictures are free inventions, with the known pixels put into them"
        )
    bare = [p.name for p in shown if not known_patches(p.known[None], _grid(p, patch)).any() and p.name not in untold]
    if bare:
        warn(
            f"no patch of {by(patch)} pixels is wholly known of {_some(bare)}: "
            "single known pixels are put back at every step, which says less to the network than a known patch"
        )


def _grid(photo: Photo, patch: tuple[int, int]) -> tuple[int, int]:
    return photo.known.shape[0] // patch[0], photo.known.shape[1] // patch[1]


def _file_for(where: Path, photo: Path, name: str) -> Path:
    """The file itself, or that of a folder that is named like the photo."""
    if not where.is_dir():
        return where
    found = sorted(file for file in where.iterdir() if file.stem == photo.stem and file.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        raise ValueError(f"{name} must hold one file named {photo.stem} for {photo}, got {len(found)} in {where}")
    return found[0]


def _names(files: Sequence[Path]) -> list[str]:
    """Stems of the files, with a number where two would be alike."""
    stems, names = {file.stem for file in files}, []
    for file in files:
        name = file.stem
        if name in names:
            free = (f"{name}-{k}" for k in count(2))
            name = next(other for other in free if other not in stems and other not in names)
        names.append(name)
    return names


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} photos, {names[0]} among them"
