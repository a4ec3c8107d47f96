"""Draw an animated GIF of a noise path: level maps along a few random curves from noise to clean."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Dither, Resampling

from asyncdiff.evaluation.figures.level_statistics import LevelStatistics

FRAMES, CURVES = 60, 6
SIDE = 80  # longer side of a map in pixels; it is rounded down so that patches have an integer size
MARGIN, BAR, BAR_WIDTH = 10, 4, 52  # in pixels: margin, height of the progress bar, space for its number on the right
WHITE, FRAME, TRACK, FILLED, INK = (255, 255, 255), (201, 201, 201), (226, 226, 226), (0, 114, 178), (70, 70, 70)
LIMIT = 300_000  # maximum file size in bytes
# Pairs (number of grays, n), where every n-th frame is kept: from the best quality to the smallest file.
QUALITIES = ((32, 1), (16, 1), (12, 1), (12, 2), (8, 2), (8, 4), (4, 4))
PAUSE, DURATION = 900, 3600  # in milliseconds: pause at both ends, and time between them


def draw_path_frames(stats: LevelStatistics, frames: int = FRAMES) -> list[Image.Image]:
    """Draw frames of a sampler's path from s = 1 to s = 0, with one map per curve, or just one if all are equal."""
    maps = stats.curves(frames, CURVES).clamp(0, 1)
    if (maps == maps[:, :1]).all():
        maps = maps[:, :1]
    return [_draw_frame(curves, 1 - k / (frames - 1)) for k, curves in enumerate(maps.numpy())]


def save_gif(frames: Sequence[Image.Image], file: Path) -> None:
    """Write a looping GIF of at most 300 kB, with fewer grays and frames if necessary.

    It starts in the middle of the path, so that a still preview of the file shows more than noise.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for grays, every in QUALITIES:
        data = _encode_gif(list(_subsample(frames, every)), grays)
        if len(data) < LIMIT:
            break
    file.write_bytes(data)


def _draw_frame(maps: np.ndarray, s: float) -> Image.Image:
    curves, gh, gw = maps.shape
    factor = max(1, SIDE * (1 if curves > 1 else 2) // max(gh, gw))
    width, height = gw * factor, gh * factor
    frame = Image.new("RGB", (curves * (width + MARGIN) + MARGIN, height + 2 * MARGIN + 20), WHITE)
    draw = ImageDraw.Draw(frame)
    for k, values in enumerate((maps * 255).round().astype(np.uint8)):
        left = MARGIN + k * (width + MARGIN)
        draw.rectangle((left - 1, MARGIN - 1, left + width, MARGIN + height), outline=FRAME)
        tile = Image.fromarray(values).resize((width, height), Resampling.NEAREST)
        frame.paste(tile, (left, MARGIN))
    top, right = height + 2 * MARGIN + 4, frame.width - MARGIN - BAR_WIDTH
    draw.rectangle((MARGIN, top, right, top + BAR), fill=TRACK)
    if s < 1:
        draw.rectangle((MARGIN, top, MARGIN + (1 - s) * (right - MARGIN), top + BAR), fill=FILLED)
    font = ImageFont.load_default(12)
    draw.text((frame.width - MARGIN, top + BAR / 2 + 1), f"s = {s:.2f}", INK, font, anchor="rm")
    return frame


def _subsample(frames: Sequence[Image.Image], every: int) -> Iterator[Image.Image]:
    """Yield every `every`-th frame, and always the last one."""
    yield from frames[:-1:every]
    yield frames[-1]


def _encode_gif(frames: Sequence[Image.Image], grays: int) -> bytes:
    palette = Image.new("P", (1, 1))
    shades = [(round(255 * k / (grays - 1)),) * 3 for k in range(grays)]
    palette.putpalette([value for color in (*shades, FRAME, TRACK, FILLED) for value in color])
    images = [frame.quantize(palette=palette, dither=Dither.NONE) for frame in frames]
    durations = [PAUSE, *[DURATION // len(frames)] * (len(frames) - 2), PAUSE]
    middle = len(frames) // 2
    first, *others = images[middle:] + images[:middle]
    durations = durations[middle:] + durations[:middle]
    file = BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    return file.getvalue()
