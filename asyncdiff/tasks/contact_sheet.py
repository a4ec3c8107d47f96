"""Where pictures are written: single PNG files, and a sheet of all of them beside what was given."""

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

Tile = UInt8[Tensor, "3 _ _"]  # of any size, and several sizes in one call

SHEET = "sheet.png"
TOLD = 5  # photos of which it is told what was done to them
SHOWN = 100  # pictures on a sheet
MIN_TILE, WIDTH = 96, 1200  # pixels: smaller tiles are enlarged by a whole factor; blocks stand beside each other up to
COLUMNS, GAP, BETWEEN = 10, 4, 12  # tiles of a block in a row; pixels between them, and between blocks
UNKNOWN = (102, 140, 178)  # a slate blue that neither black nor white digits nor most photographs contain


def fresh_folder(folder: Path, *, given: bool) -> Path:
    """A folder without pictures, made now: the one asked for, or the next number of one that nobody asked for.

    Args:
        folder: where the pictures are to go.
        given: whether a user named it; then it is refused if it holds pictures.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}: name another")
    if given and _holds_pictures(folder):
        raise ValueError(f"output must hold no pictures yet, got {folder}: name another folder, or empty it")
    chosen, number = folder, 1
    while _holds_pictures(chosen):
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def notes_of(requests: Sequence[Request]) -> list[str]:
    """What was done to the photos, of the first few of them."""
    notes = list(dict.fromkeys(request.note for request in requests if request.note))
    left = len(notes) - TOLD
    return [*notes[:TOLD], f"and {left} more photos"] if left > 1 else notes


def write(images: Float[Tensor, "b c h w"], requests: Sequence[Request], folder: Path) -> None:
    """One PNG file per picture; pixels that were known are those of the photo, exactly."""
    for pixels, request in zip(to_bytes(images), requests, strict=True):
        save_png(pixels, folder / f"{request.name}.png")


def write_sheet(requests: Sequence[Request], folder: Path) -> Path | None:
    """The file of the sheet, None for a single picture: photos with what is known of them, their results beside them.

    It is made of the files in the folder, whichever process wrote them.
    """
    shown = requests[:SHOWN]
    if len(shown) == 1 and shown[0].image is None:
        return None
    blocks = []
    for _, group in groupby(shown, key=lambda request: request.group):
        rows = list(group)
        results = [read_photo(folder / f"{request.name}.png", 3) for request in rows]
        blocks.append(results if rows[0].image is None else [given_tile(rows[0]), *results])
    save_png(sheet(blocks), folder / SHEET)
    return folder / SHEET


def sheet(blocks: Sequence[Sequence[Tile]]) -> Tile:
    """Blocks of tiles on white: the tiles of each in rows, the blocks beside and below each other."""
    large = max(max(tile.shape[1:]) for block in blocks for tile in block)
    factor = max(1, -(-MIN_TILE // large))
    strips = [_laid([_enlarged(tile, factor) for tile in block], columns=COLUMNS, gap=GAP) for block in blocks]
    widest = max(strip.shape[2] for strip in strips)
    return _bordered(_laid(strips, columns=max(1, WIDTH // widest), gap=BETWEEN))


def given_tile(request: Request) -> Tile:
    """What is known of a picture, the rest in one colour, the thicker the more it may change."""
    image, known = request.whole()
    colour = to_bytes(image).expand(3, -1, -1)
    paint = torch.tensor(UNKNOWN, dtype=torch.uint8)[:, None, None]
    if request.levels is not None:
        return torch.lerp(colour.float(), paint.float(), request.levels.cpu()).round().to(torch.uint8)
    return torch.where(known.cpu(), colour, paint)


def _laid(tiles: Sequence[Tile], *, columns: int, gap: int) -> Tile:
    """Tiles in rows, each in the upper left corner of a cell as large as the largest."""
    columns = min(columns, len(tiles))
    height, width = (max(tile.shape[axis] for tile in tiles) + gap for axis in (1, 2))
    white = torch.full((3, -(-len(tiles) // columns) * height - gap, columns * width - gap), 255, dtype=torch.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        white[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return white


def _bordered(tile: Tile) -> Tile:
    return F.pad(tile, (GAP, GAP, GAP, GAP), value=255)


def _enlarged(tile: Tile, factor: int) -> Tile:
    return tile.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(re.fullmatch(r".*\.(png|gif)", file.name) for file in folder.iterdir())
