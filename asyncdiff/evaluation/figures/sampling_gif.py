"""Record sampling as an animated GIF, with each image next to its level map (black = clean)."""

import math
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.Image import Dither, Quantize
from torch import Tensor

from asyncdiff.image_grid import image_grid

MAX_IMAGES, COLUMNS = 6, 2  # maximum numbers of images, in total and per row
FRAMES = 60  # maximum number of frames
MIN_TILE, GAP = 128, 8  # in pixels; smaller images are enlarged by an integer factor
MAX_PIXELS = 2**22  # of a frame; beyond it, only every n-th row and column of the images is shown
WHITE, FRAME = 255, 201
PAUSE, DURATION = 1200, 4000  # in milliseconds: pause on the result, and time from noise to the result
COLORS, GRAYS = 256, 16  # size of the palette, and number of its grays reserved for the level maps


class SamplingGIF:
    """Records a sampling trajectory of any length as a limited number of evenly spaced frames."""

    def __init__(self) -> None:
        self._frames: list[Image.Image] = []
        self._last: Image.Image | None = None
        self._interval, self._count = 1, 0

    def add(self, images: UInt8[Tensor, "b c h w"], levels: Float[Tensor, "b gh gw"] | None) -> None:
        """Record one state of the trajectory; only the first `MAX_IMAGES` images are used."""
        self._last = _draw_frame(images[:MAX_IMAGES], None if levels is None else levels[:MAX_IMAGES])
        if self._count % self._interval == 0:
            self._frames.append(self._last)
        self._count += 1
        if len(self._frames) > FRAMES:
            self._frames, self._interval = self._frames[::2], 2 * self._interval

    def save(self, file: Path) -> None:
        """Write a looping GIF that pauses on the result, with one palette for all frames."""
        assert self._last is not None, "nothing was recorded"
        frames = [frame for frame in self._frames if frame is not self._last] + [self._last]
        palette = _build_palette(frames)
        images = [frame.quantize(palette=palette, dither=Dither.NONE) for frame in frames]
        durations = [max(20, DURATION // len(frames))] * (len(frames) - 1)
        data = BytesIO()
        images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=[*durations, PAUSE], loop=0)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.getvalue())


def _draw_frame(images: UInt8[Tensor, "b c h w"], levels: Float[Tensor, "b gh gw"] | None) -> Image.Image:
    pixels = 2 * images[:, 0].numel()  # with their level maps
    every = math.ceil(math.sqrt(pixels / MAX_PIXELS))
    images = images[:, :, ::every, ::every]
    factor = max(1, -(-MIN_TILE // max(images.shape[2:])))
    tiles = [images.cpu().float()]
    if levels is not None:
        tiles.append((levels[:, None].float().cpu().clamp(0, 1) * 255).round())
    size = [side * factor for side in images.shape[2:]]
    enlarged = [F.interpolate(tile.expand(-1, 3, -1, -1), size, mode="nearest-exact") for tile in tiles]
    framed = [F.pad(tile, (1, 1, 1, 1), value=FRAME) for tile in enlarged]  # noise is as white as the background
    pairs = list(torch.cat(framed, dim=3))
    grid = pairs[0] if len(pairs) == 1 else image_grid(pairs, COLUMNS, gap=GAP, background=WHITE)
    return Image.fromarray(grid.to(torch.uint8).permute(1, 2, 0).numpy())


def _build_palette(frames: list[Image.Image]) -> Image.Image:
    """Return a palette of grays and of colors from a few frames, mainly the last one, which is shown longest."""
    selected = [frames[0], frames[len(frames) // 2], frames[-1], frames[-1]]
    width, height = selected[0].size
    montage = Image.new("RGB", (width, height * len(selected)))
    for i, frame in enumerate(selected):
        montage.paste(frame, (0, i * height))
    colors = montage.quantize(COLORS - GRAYS, Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(round(255 * k / (GRAYS - 1)) for k in range(GRAYS) for _ in range(3)), *colors])
    return palette
