"""Write images to PNG files, and a contact sheet that shows them next to the photos they were made from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from asyncdiff.image_grid import image_grid
from asyncdiff.tasks.photos import Pixels, read_photo, save_png, to_bytes, to_channels
from asyncdiff.tasks.requests import Photo, Request

Tile = UInt8[Tensor, "3 _ _"]  # of any size; sizes may differ within a call

SHEET = "sheet.png"
MAX_NOTES = 5  # maximum number of notes on photos that are printed
MAX_SHEET_IMAGES = 100
MAX_SHEET_PIXELS = 2**26  # of all tiles; beyond it, only every n-th row and column of every tile is shown
MAX_KEPT = 2**28  # bytes of pixels that are kept for the sheet; others are read from their files
MIN_TILE = 96  # pixels: smaller tiles are enlarged by an integer factor
WIDTH = 1200  # pixels: blocks are placed side by side up to this width
COLUMNS, GAP = 10, 4  # tiles per row of a block; pixels between and around tiles
UNKNOWN_COLOR = (102, 140, 178)  # a slate blue that neither black nor white digits nor most photographs contain


def collect_notes(requests: Sequence[Request]) -> list[str]:
    """Return the distinct notes on how photos were resized and cropped, limited to the first few."""
    notes = list(dict.fromkeys(request.photo.note for request in requests if request.photo is not None))
    remaining = len(notes) - MAX_NOTES
    return [*notes[:MAX_NOTES], f"and {remaining} more photos"] if remaining > 1 else notes


def write_images(
    images: Float[Tensor, "b c h w"], requests: Sequence[Request], folder: Path
) -> dict[str, UInt8[Tensor, "c h w"]]:
    """Write one PNG file per image, and return their pixels by name; known pixels are exactly those of the photo."""
    written = {request.name: pixels for request, pixels in zip(requests, to_bytes(images), strict=True)}
    for name, pixels in written.items():
        save_png(pixels, folder / f"{name}.png")
    return written


def keep_for_sheet(kept: dict[str, Pixels], written: Mapping[str, Pixels]) -> None:
    """Add images that were written to those that are kept for the sheet, while there are few and small enough."""
    used = sum(pixels.numel() for pixels in kept.values())
    for name, pixels in written.items():
        used += pixels.numel()
        if len(kept) >= MAX_SHEET_IMAGES or used > MAX_KEPT:
            return
        kept[name] = pixels


def write_sheet(requests: Sequence[Request], folder: Path, images: Mapping[str, Pixels] | None = None) -> Path | None:
    """Write a contact sheet that shows the known pixels of each photo, followed by its results.

    Args:
        requests: requests whose images have been written.
        folder: folder of the images, and of the sheet.
        images: pixels of the images by name; those that are missing, because another process wrote them, are read from
            their files.

    Returns:
        Path of the sheet, or None for a single generated image, which needs no sheet.
    """
    sheet_requests = requests[:MAX_SHEET_IMAGES]
    if len(sheet_requests) == 1 and sheet_requests[0].photo is None:
        return None
    images, blocks = images or {}, []
    pixels = sum(math.prod(request.size) for request in sheet_requests)
    every = math.ceil(math.sqrt(pixels / MAX_SHEET_PIXELS))
    for _, group in groupby(sheet_requests, key=lambda request: request.photo and request.photo.name):
        rows = list(group)
        tiles: Iterable[Pixels] = (
            images[r.name] if r.name in images else read_photo(folder / f"{r.name}.png", 3) for r in rows
        )
        photo, size = rows[0].photo, rows[0].size
        tiles = tiles if photo is None else chain([known_tile(photo, size)], tiles)
        blocks.append([to_channels(tile[:, ::every, ::every].clone(), 3) for tile in tiles])
    save_png(make_sheet(blocks), folder / SHEET)
    return folder / SHEET


def make_sheet(blocks: Sequence[Sequence[Tile]]) -> Tile:
    """Arrange the tiles of each block in rows, and the blocks side by side and below each other, on white."""
    largest = max(max(tile.shape[1:]) for block in blocks for tile in block)
    factor = max(1, -(-MIN_TILE // largest))
    enlarged = [[tile.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for tile in block] for block in blocks]
    strips = [image_grid(block, COLUMNS, gap=GAP, background=255) for block in enlarged]
    columns = max(1, WIDTH // (max(strip.shape[2] for strip in strips) - 2 * GAP))
    return image_grid(strips, columns, gap=GAP, background=255)[:, GAP:-GAP, GAP:-GAP]  # strips have a border already


def known_tile(photo: Photo, size: tuple[int, int]) -> Tile:
    """Paint the unknown pixels of a photo in a result of `size` in one color; with levels, opacity is the level."""
    image, known = photo.padded_to(size)
    pixels = to_bytes(image).expand(3, -1, -1)
    paint = torch.tensor(UNKNOWN_COLOR, dtype=torch.uint8)[:, None, None]
    if photo.levels is not None:
        return torch.lerp(pixels.float(), paint.float(), photo.levels.cpu()).round().to(torch.uint8)
    return torch.where(known.cpu(), pixels, paint)
