"""A noise path as a moving picture: level maps of a few random curves on the way from noise to clean."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Dither, Resampling

from asyncdiff.evaluation.figures.level_statistics import Survey

FRAMES, CURVES = 60, 6
SIDE = 80  # pixels of a map's longer side, about: a patch is a whole number of pixels
MARGIN, BAR, BAR_WIDTH = 10, 4, 52  # pixels; the bar's height, and what its number needs at the right
WHITE, FRAME, TRACK, FILLED, INK = (255, 255, 255), (201, 201, 201), (226, 226, 226), (0, 114, 178), (70, 70, 70)
LIMIT = 300_000  # bytes of a file
# Gray values and share of the frames, from the best picture to the smallest file.
QUALITIES = ((32, 1), (16, 1), (12, 1), (12, 2), (8, 2), (8, 4), (4, 4))
PAUSE, WALK = 900, 3600  # milliseconds: at both ends, and from one to the other


def viewer_frames(survey: Survey, frames: int = FRAMES) -> list[Image.Image]:
    """Pictures of a sampler's path at equal steps from s = 1 to s = 0: curves in a row, or the one that there is."""
    maps = survey.curves(frames, CURVES).clamp(0, 1)
    if (maps == maps[:, :1]).all():
        maps = maps[:, :1]
    return [_frame(curves, 1 - k / (frames - 1)) for k, curves in enumerate(maps.numpy())]


def save_gif(frames: Sequence[Image.Image], file: Path) -> None:
    """Write a GIF that runs for ever, from the walk's middle on, so that something is seen where it stands still.

    It is below 300 kB, at the cost of gray values and frames where it has to be.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for grays, every in QUALITIES:
        data = _gif(list(_thinned(frames, every)), grays)
        if len(data) < LIMIT:
            break
    file.write_bytes(data)


def _frame(maps: np.ndarray, s: float) -> Image.Image:
    curves, gh, gw = maps.shape
    factor = max(1, SIDE * (1 if curves > 1 else 2) // max(gh, gw))
    width, height = gw * factor, gh * factor
    picture = Image.new("RGB", (curves * (width + MARGIN) + MARGIN, height + 2 * MARGIN + 20), WHITE)
    draw = ImageDraw.Draw(picture)
    for k, values in enumerate((maps * 255).round().astype(np.uint8)):
        left = MARGIN + k * (width + MARGIN)
        draw.rectangle((left - 1, MARGIN - 1, left + width, MARGIN + height), outline=FRAME)
        tile = Image.fromarray(values).resize((width, height), Resampling.NEAREST)
        picture.paste(tile, (left, MARGIN))
    top, right = height + 2 * MARGIN + 4, picture.width - MARGIN - BAR_WIDTH
    draw.rectangle((MARGIN, top, right, top + BAR), fill=TRACK)
    if s < 1:
        draw.rectangle((MARGIN, top, MARGIN + (1 - s) * (right - MARGIN), top + BAR), fill=FILLED)
    font = ImageFont.load_default(12)
    draw.text((picture.width - MARGIN, top + BAR / 2 + 1), f"s = {s:.2f}", INK, font, anchor="rm")
    return picture


def _thinned(frames: Sequence[Image.Image], every: int) -> Iterator[Image.Image]:
    """Every so many frames, the last one always."""
    yield from frames[:-1:every]
    yield frames[-1]


def _gif(frames: Sequence[Image.Image], grays: int) -> bytes:
    palette = Image.new("P", (1, 1))
    shades = [(round(255 * k / (grays - 1)),) * 3 for k in range(grays)]
    palette.putpalette([value for colour in (*shades, FRAME, TRACK, FILLED) for value in colour])
    pictures = [frame.quantize(palette=palette, dither=Dither.NONE) for frame in frames]
    durations = [PAUSE, *[WALK // len(frames)] * (len(frames) - 2), PAUSE]
    middle = len(frames) // 2
    first, *others = pictures[middle:] + pictures[:middle]
    durations = durations[middle:] + durations[:middle]
    file = BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    return file.getvalue()
