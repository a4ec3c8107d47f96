"""Write images to PNG files, and a contact sheet that shows them next to the photos they were made from."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from asyncdiff.tasks.photos import read_photo, save_png, to_bytes
from asyncdiff.tasks.requests import Request

Tile = UInt8[Tensor, "3 _ _"]  # of any size; sizes may differ within a call

SHEET = "sheet.png"
MAX_NOTES = 5  # maximum number of notes on photos that are printed
MAX_SHEET_IMAGES = 100
MIN_TILE = 96  # pixels: smaller tiles are enlarged by an integer factor
WIDTH = 1200  # pixels: blocks are placed side by side up to this width
COLUMNS, GAP = 10, 4  # tiles per row of a block; pixels between and around tiles
UNKNOWN_COLOR = (102, 140, 178)  # a slate blue that neither black nor white digits nor most photographs contain


def create_output_folder(folder: Path, *, explicit: bool) -> Path:
    """Create a folder for images: the requested one, or a numbered sibling if a default one already contains images.

    Args:
        folder: requested folder.
        explicit: whether the user chose the folder; if so, it is refused if it already contains images.

    Returns:
        Path of the created folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the existing file {folder}: choose another path")
    if explicit and _contains_images(folder):
        raise ValueError(f"output folder {folder} already contains images: choose another folder, or empty it")
    chosen, number = folder, 1
    while _contains_images(chosen):
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def collect_notes(requests: Sequence[Request]) -> list[str]:
    """Return the distinct notes on how photos were resized and cropped, limited to the first few."""
    notes = list(dict.fromkeys(request.note for request in requests if request.note))
    remaining = len(notes) - MAX_NOTES
    return [*notes[:MAX_NOTES], f"and {remaining} more photos"] if remaining > 1 else notes


def write_images(images: Float[Tensor, "b c h w"], requests: Sequence[Request], folder: Path) -> None:
    """Write one PNG file per image; known pixels are exactly those of the photo."""
    for pixels, request in zip(to_bytes(images), requests, strict=True):
        save_png(pixels, folder / f"{request.name}.png")


def write_sheet(requests: Sequence[Request], folder: Path) -> Path | None:
    """Write a contact sheet that shows the known pixels of each photo, followed by its results.

    Args:
        requests: requests whose images are in the folder, whichever process wrote them.
        folder: folder of the images, and of the sheet.

    Returns:
        Path of the sheet, or None for a single generated image, which needs no sheet.
    """
    sheet_requests = requests[:MAX_SHEET_IMAGES]
    if len(sheet_requests) == 1 and sheet_requests[0].image is None:
        return None
    blocks = []
    for _, group in groupby(sheet_requests, key=lambda request: request.group):
        rows = list(group)
        results = [read_photo(folder / f"{request.name}.png", 3) for request in rows]
        blocks.append(results if rows[0].image is None else [known_tile(rows[0]), *results])
    save_png(make_sheet(blocks), folder / SHEET)
    return folder / SHEET


def make_sheet(blocks: Sequence[Sequence[Tile]]) -> Tile:
    """Arrange the tiles of each block in rows, and the blocks side by side and below each other, on white."""
    largest = max(max(tile.shape[1:]) for block in blocks for tile in block)
    factor = max(1, -(-MIN_TILE // largest))
    enlarged = [[tile.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for tile in block] for block in blocks]
    strips = [_grid(block, COLUMNS) for block in enlarged]
    widest = max(strip.shape[2] for strip in strips) - 2 * GAP
    return _grid(strips, columns=max(1, WIDTH // widest))[:, GAP:-GAP, GAP:-GAP]  # strips have a border already


def known_tile(request: Request) -> Tile:
    """Paint the unknown pixels of a photo in one color; with a level map, opacity equals the level."""
    image, known = request.at_full_size()
    pixels = to_bytes(image).expand(3, -1, -1)
    paint = torch.tensor(UNKNOWN_COLOR, dtype=torch.uint8)[:, None, None]
    if request.levels is not None:
        return torch.lerp(pixels.float(), paint.float(), request.levels.cpu()).round().to(torch.uint8)
    return torch.where(known.cpu(), pixels, paint)


def _grid(tiles: Sequence[Tile], columns: int) -> Tile:
    """Arrange tiles in rows with a border, each in the upper left corner of a cell as large as the largest tile."""
    from torchvision.utils import make_grid  # imported late, because it takes seconds

    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    cells = [F.pad(tile, (0, width - tile.shape[2], 0, height - tile.shape[1]), value=255) for tile in tiles]
    if len(cells) == 1:  # to which make_grid adds no border
        return F.pad(cells[0], (GAP, GAP, GAP, GAP), value=255)
    return make_grid(cells, nrow=columns, padding=GAP, pad_value=255)


def _contains_images(folder: Path) -> bool:
    return folder.is_dir() and any(re.fullmatch(r".*\.(png|gif)", file.name) for file in folder.iterdir())
