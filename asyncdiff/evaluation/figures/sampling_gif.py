"""Pictures coming about, as a moving picture: every image with its level map beside it (black = clean)."""

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from PIL.Image import Dither, Quantize, Resampling
from torch import Tensor

SHOWN, COLUMNS = 6, 2  # pictures in a movie, and beside each other
FRAMES = 60  # at most
MIN_TILE, GAP = 128, 8  # pixels: smaller pictures are enlarged by a whole factor
WHITE, FRAME = (255, 255, 255), (201, 201, 201)
PAUSE, WALK = 1200, 4000  # milliseconds: on the result, and from the noise to it
COLOURS, GRAYS = 256, 16  # of the palette, and among them grays for the level maps


class SamplingGIF:
    """A recorder of a walk that keeps few frames, evenly spaced, however long the walk becomes."""

    def __init__(self) -> None:
        self._kept: list[Image.Image] = []
        self._last: Image.Image | None = None
        self._every, self._count = 1, 0

    def add(self, images: UInt8[Tensor, "b c h w"], levels: Float[Tensor, "b gh gw"] | None) -> None:
        """Record a state of a few images; only the first ones are shown."""
        self._last = _frame(images[:SHOWN], None if levels is None else levels[:SHOWN])
        if self._count % self._every == 0:
            self._kept.append(self._last)
        self._count += 1
        if len(self._kept) > FRAMES:
            self._kept, self._every = self._kept[::2], 2 * self._every

    def save(self, file: Path) -> None:
        """Write a GIF that runs for ever and rests on the result; one palette for all frames."""
        assert self._last is not None, "nothing was recorded"
        frames = [frame for frame in self._kept if frame is not self._last] + [self._last]
        palette = _palette(frames)
        pictures = [frame.quantize(palette=palette, dither=Dither.NONE) for frame in frames]
        between = [max(20, WALK // len(frames))] * (len(frames) - 1)
        data = BytesIO()
        pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=[*between, PAUSE], loop=0)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.getvalue())


def _frame(images: UInt8[Tensor, "b c h w"], levels: Float[Tensor, "b gh gw"] | None) -> Image.Image:
    height, width = images.shape[2:]
    factor = max(1, -(-MIN_TILE // max(height, width)))
    size = (width * factor, height * factor)
    tiles = 1 if levels is None else 2
    columns = min(COLUMNS, len(images))
    cell = (tiles * (size[0] + GAP // 2) + GAP, size[1] + GAP)
    frame = Image.new("RGB", (columns * cell[0] + GAP // 2, -(-len(images) // columns) * cell[1] + GAP), WHITE)
    draw = ImageDraw.Draw(frame)
    for i, image in enumerate(images):
        left, top = i % columns * cell[0] + GAP, i // columns * cell[1] + GAP
        frame.paste(_tile(image.cpu().permute(1, 2, 0).numpy(), size), (left, top))
        if levels is not None:
            level = (levels[i].float().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
            left += size[0] + GAP // 2
            frame.paste(_tile(level[..., None], size), (left, top))
            # Pure noise is as white as the paper.
            draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), outline=FRAME)
    return frame


def _tile(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    array = pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)
    return Image.fromarray(array).convert("RGB").resize(size, Resampling.NEAREST)


def _palette(frames: list[Image.Image]) -> Image.Image:
    """Grays, and the colours of a few frames, the last one above all: that is what the movie rests on."""
    chosen = [frames[0], frames[len(frames) // 2], frames[-1], frames[-1]]
    width, height = chosen[0].size
    montage = Image.new("RGB", (width, height * len(chosen)), WHITE)
    for i, frame in enumerate(chosen):
        montage.paste(frame, (0, i * height))
    colours = montage.quantize(COLOURS - GRAYS, Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(round(255 * k / (GRAYS - 1)) for k in range(GRAYS) for _ in range(3)), *colours])
    return palette
