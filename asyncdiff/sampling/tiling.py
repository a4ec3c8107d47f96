"""Tiled sampling: images larger than the model's, generated window by window, each inpainted around its neighbors.

Each side of the canvas is split into segments of level patches. The first segment is a full window; the others grow
from it in both directions, each at the far end of a window whose other patches belong to segments of lower rank. If the
canvas wraps around, the last segment closes the circle, with known patches on both sides.

A cell is the product of a row segment and a column segment; its window generates the cell. The window is conditioned on
the cells whose ranks exceed its own neither in rows nor in columns. Cells with the same sum of ranks are
therefore independent of each other: they are generated together, in batches, with the same result as one by one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from asyncdiff.checks import at_least, below_one
from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.devices import to_device
from asyncdiff.randomness import counter_key
from asyncdiff.sampling.engine import ImageBatch, sample
from asyncdiff.sampling.samplers import ImageSampler, Sampler
from asyncdiff.sampling.trajectories import last


class TilingState(NamedTuple):
    """Progress of tiled sampling.

    Attributes:
        done: number of windows generated so far.
        windows: number of windows in all.
        canvas: image so far, (c, H, W), 0 where nothing has been generated. Later windows are written into the same
            tensor: clone it to keep an intermediate state.
    """

    done: int
    windows: int
    canvas: Float[Tensor, "c H W"]


@dataclass(frozen=True)
class Segment:
    """Segment of one side of a canvas, in level patches (modulo the length of the side if it wraps around).

    Attributes:
        first: index of the segment's first patch.
        length: number of patches in the segment.
        window: index of the first patch of the window that generates the segment.
        rank: place in the order of generation; the window is conditioned on segments of lower rank.
    """

    first: int
    length: int
    window: int
    rank: int


@dataclass(frozen=True)
class WindowView:
    """Window of a segment along one side of the canvas, pixel by pixel.

    Attributes:
        index: position of the segment along the side.
        rank: rank of the segment.
        pixels: canvas coordinate of every pixel of the window.
        visible: True for pixels of the segment itself and of segments of lower rank.
        own: True for pixels of the segment itself.
        exemplar: True for pixels of the exemplar.
    """

    index: int
    rank: int
    pixels: Int64[Tensor, " n"]
    visible: Bool[Tensor, " n"]
    own: Bool[Tensor, " n"]
    exemplar: Bool[Tensor, " n"]

    @property
    def covered(self) -> bool:
        """Whether the exemplar covers the entire segment."""
        return bool((self.exemplar | ~self.own).all())


class TiledSampler:
    """Sampler that generates images of any size with a fixed-size model, optionally tileable or around an exemplar.

    The first window lies on the exemplar, or in the middle of the canvas without one; the others grow from there in all
    directions. With an overlap, every window except the first is conditioned on known pixels. The result does not
    depend on `batch_size`. Memory: the canvas, one batch of windows, and lists as long as the sides of the canvas.

    Args:
        sampler: sampler that inpaints each window around its known pixels; `Sampler()` by default.
        overlap: share of a window's side that is known when it is generated, in [0, 1), rounded to whole level patches;
            0 leaves seams. A window that closes a circle has half of the overlap on each side.
        tileable: whether the canvas wraps around, top to bottom and left to right, so that copies side by side show no
            seam. The two sides that the last window joins are generated independently: the window minus its overlap,
            which lies between them, should be longer than the correlation length of the texture.
        batch_size: number of windows generated together.

    Example:
        A 20x28 image from a model of 8x8 images:

        >>> from asyncdiff.denoising import Denoiser
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import RectifiedFlow
        >>> denoiser = Denoiser(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2), RectifiedFlow())
        >>> tiled = TiledSampler(Sampler(steps=2), overlap=0.5)
        >>> tiled(denoiser, size=(20, 28), shape=(1, 8, 8), seed=0).shape
        torch.Size([1, 20, 28])
    """

    def __init__(
        self,
        sampler: ImageSampler | None = None,
        overlap: float = 0.5,
        tileable: bool = False,
        batch_size: int = 64,
    ):
        below_one("overlap", overlap, "use 0.5, for example")
        if tileable and not overlap:
            raise ValueError("overlap must be positive for a tileable canvas, got 0: use 0.5, for example")
        at_least("batch_size", batch_size, 1, "use 64, for example")
        self.sampler = sampler or Sampler()
        self.overlap = overlap
        self.tileable = tileable
        self.batch_size = batch_size

    def __call__(
        self,
        denoiser: DenoiserLike,
        *,
        size: tuple[int, int],
        shape: tuple[int, int, int],
        seed: int,
        label: int | None = None,
        exemplar: Shaped[Tensor, "c eh ew"] | None = None,
        place: tuple[int, int] = (0, 0),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "c H W"]:
        """Generate one image of `size`.

        Args:
            denoiser: trained denoiser or exact oracle; the sampler's guidance wraps it.
            size: (H, W) of the image, at least that of a window. A tileable image needs a multiple of the level patch;
                other images are generated up to the next multiple and cropped.
            shape: (c, h, w) of one window, the model's image shape.
            seed: seed of the entire image; the window in row i and column j has the seed `counter_key(seed, i, j)`.
            label: class of every window; None for unconditional sampling.
            exemplar: known pixels (c, eh, ew), floating point in [-1, 1], covering at least one level patch of the
                canvas. Pixels in partly covered patches are treated as in `ImageSampler`.
            place: row and column of the exemplar's first pixel on the canvas; at multiples of the level patch, no patch
                is cut. An exemplar that spans a tileable canvas from edge to edge meets itself there.
            device: device of the denoiser and of the canvas.
            dtype: floating-point type of the image.

        Returns:
            The image (c, H, W); where the exemplar lies it equals the exemplar bit for bit.
        """
        steps = self.steps(
            denoiser,
            size=size,
            shape=shape,
            seed=seed,
            label=label,
            exemplar=exemplar,
            place=place,
            device=device,
            dtype=dtype,
        )
        return last(steps).canvas

    def steps(
        self,
        denoiser: DenoiserLike,
        *,
        size: tuple[int, int],
        shape: tuple[int, int, int],
        seed: int,
        label: int | None = None,
        exemplar: Shaped[Tensor, "c eh ew"] | None = None,
        place: tuple[int, int] = (0, 0),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[TilingState]:
        """Yield the state before the first window and after each batch of windows; arguments as in `__call__`."""
        grid = denoiser.grid((shape[1], shape[2]))
        patch = (shape[1] // grid[0], shape[2] // grid[1])
        self._check(size, shape, patch)
        if exemplar is not None:
            _check_exemplar(exemplar, place, size, shape[0], patch)
        canvas = torch.zeros(
            shape[0], *(math.ceil(n / p) * p for n, p in zip(size, patch, strict=True)), device=device, dtype=dtype
        )
        covered = [range(0), range(0)]
        if exemplar is not None:
            covered = [range(p, p + n) for p, n in zip(place, exemplar.shape[1:], strict=True)]
            inside = canvas[:, covered[0].start : covered[0].stop, covered[1].start : covered[1].stop]
            inside.copy_(to_device(exemplar.to(dtype), device))
        rows, columns = (self._window_views(canvas.shape[k + 1], grid[k], patch[k], covered[k]) for k in (0, 1))

        windows = len(rows) * len(columns) - sum(v.covered for v in rows) * sum(v.covered for v in columns)
        shown, done = canvas[:, : size[0], : size[1]], 0
        yield TilingState(done, windows, shown)
        for batch in _batches(rows, columns, self.batch_size):
            self._generate(canvas, batch, denoiser, seed, label)
            done += len(batch)
            yield TilingState(done, windows, shown)

    def _generate(
        self,
        canvas: Float[Tensor, "c H W"],
        cells: Sequence[tuple[WindowView, WindowView]],
        denoiser: DenoiserLike,
        seed: int,
        label: int | None,
    ) -> None:
        """Generate the windows of independent cells, and write the cells into the canvas."""
        size, device = (canvas.shape[1], canvas.shape[2]), canvas.device
        pixels = torch.stack([_flat_index(r.pixels, c.pixels, size[1]) for r, c in cells])  # of the canvas
        image = canvas.flatten(1)[:, to_device(pixels, device)].transpose(0, 1)
        batch = ImageBatch(
            seeds=[counter_key(seed, r.index, c.index) for r, c in cells],
            labels=None if label is None else [label] * len(cells),
            image=image,
            known=torch.stack([_known_pixels(r, c) for r, c in cells]),
        )
        shape = (image.shape[1], image.shape[2], image.shape[3])
        windows = sample(denoiser, self.sampler, batch, shape, batch_size=len(cells), device=device, dtype=canvas.dtype)
        own = torch.stack([r.own[:, None] & c.own for r, c in cells])
        source, target = to_device(torch.stack([own.flatten().nonzero()[:, 0], pixels[own]]), device)
        canvas.view(len(canvas), -1)[:, target] = windows.transpose(0, 1).flatten(1)[:, source]

    def _window_views(self, pixels: int, window: int, patch: int, covered: range) -> list[WindowView]:
        """Place windows of `window` patches along a side of the canvas; `covered` are the pixels of the exemplar."""
        patches = pixels // patch
        overlap = _overlap_in_patches(self.overlap, window, self.tileable) if self.tileable or patches > window else 0
        middle = (covered.start + covered.stop) / (2 * patch) if covered else patches / 2
        parts = segments(patches, window, overlap, middle=middle, tileable=self.tileable)
        rank, owner = torch.empty(2, patches, dtype=torch.int64, device="cpu")
        for index, segment in enumerate(parts):
            inside = torch.arange(segment.first, segment.first + segment.length, device="cpu") % patches
            rank[inside], owner[inside] = segment.rank, index
        views = []
        for index, segment in enumerate(parts):
            at = torch.arange(segment.window * patch, (segment.window + window) * patch, device="cpu") % pixels
            own = owner[at // patch] == index
            visible = own | (rank[at // patch] < segment.rank)
            exemplar = (at >= covered.start) & (at < covered.stop)
            views.append(WindowView(index, segment.rank, at, visible, own, exemplar))
        return views

    def _check(self, size: tuple[int, int], shape: tuple[int, int, int], patch: tuple[int, int]) -> None:
        if size[0] < shape[1] or size[1] < shape[2]:
            raise ValueError(
                f"size must be at least that of a window, {shape[1]}x{shape[2]}, got {size[0]}x{size[1]}: "
                "generate a larger canvas and crop it"
            )
        if self.tileable and (size[0] % patch[0] or size[1] % patch[1]):
            raise ValueError(
                f"size must be a multiple of the level patch of {patch[0]}x{patch[1]} pixels for a tileable canvas, "
                f"got {size[0]}x{size[1]}: a cropped canvas does not wrap around"
            )


def segments(patches: int, window: int, overlap: int, *, middle: float, tileable: bool) -> list[Segment]:
    """Split one side of a canvas into as few segments as possible; all lengths are in level patches.

    The outermost segments may be short. Every segment lies at the far end of its window, except one that closes a
    circle: that lies in the middle of its window, and leaves at least one known patch on both of its sides.

    Args:
        patches: length of the side, at least that of the window.
        window: length of a window.
        overlap: overlap of a window with the previous segments, less than the window.
        middle: desired center of the first window.
        tileable: whether the side wraps around.

    Returns:
        The segments in order along the side.
    """
    stride = window - overlap
    closing = min(stride, window - 2) if tileable else 0
    room = max(patches - closing - window, 0)
    # A start at a multiple of the stride needs no more windows than a start at an edge.
    start = round((middle - window / 2) / stride) * stride
    if tileable:
        before = room // stride // 2 * stride
    else:
        start = before = min(max(start, 0), room)
    after = room - before
    length = min(window, patches - closing)
    parts = [Segment(start, length, start, 0)]
    for rank, grown in enumerate(range(0, after, stride), 1):
        end = start + window + min(grown + stride, after)
        parts.append(Segment(start + window + grown, end - start - window - grown, end - window, rank))
    for rank, grown in enumerate(range(0, before, stride), 1):
        first = start - min(grown + stride, before)
        parts.insert(0, Segment(first, start - grown - first, first, rank))
    if closing:
        first = start + length + after
        rank = 1 + max(segment.rank for segment in parts)
        parts.append(Segment(first, closing, first - (window - closing) // 2, rank))
    return parts


def _batches(
    rows: Sequence[WindowView], columns: Sequence[WindowView], size: int
) -> Iterator[list[tuple[WindowView, WindowView]]]:
    """Yield the cells to generate, as batches of independent cells."""
    by_rank: dict[int, list[WindowView]] = {}
    for column in columns:
        by_rank.setdefault(column.rank, []).append(column)
    for ranks in range(max(r.rank for r in rows) + max(by_rank) + 1):
        cells = ((r, c) for r in rows for c in by_rank.get(ranks - r.rank, []) if not (r.covered and c.covered))
        while batch := list(islice(cells, size)):
            yield batch


def _flat_index(rows: Int64[Tensor, " h"], columns: Int64[Tensor, " w"], width: int) -> Int64[Tensor, "h w"]:
    """Return the indices of these rows and columns among all pixels of a canvas, row by row."""
    return rows[:, None] * width + columns


def _known_pixels(row: WindowView, column: WindowView) -> Bool[Tensor, "h w"]:
    """Return the mask of a window's known pixels: those of earlier cells and of the exemplar."""
    earlier = row.visible[:, None] & column.visible & ~(row.own[:, None] & column.own)
    return earlier | (row.exemplar[:, None] & column.exemplar)


def _overlap_in_patches(share: float, window: int, tileable: bool) -> int:
    """Return the overlap of two windows of `window` level patches, in patches."""
    overlap = round(share * window)
    if share and not 0 < overlap < window:
        raise ValueError(
            f"overlap must round to 1 .. {window - 1} of a window's {window} level patches, got {share}: "
            "choose another overlap, or a model with more patches"
        )
    if tileable and window < 3:
        raise ValueError(
            f"tileable needs windows of at least 3 level patches a side, got {window}: "
            "use a model with more patches, or turn tileable off"
        )
    return overlap


def _check_exemplar(
    exemplar: Tensor, place: tuple[int, int], size: tuple[int, int], channels: int, patch: tuple[int, int]
) -> None:
    if not exemplar.is_floating_point():
        raise ValueError(f"exemplar must be floating point in [-1, 1], got {exemplar.dtype}: use image / 127.5 - 1")
    if exemplar.ndim != 3 or exemplar.shape[0] != channels:
        raise ValueError(
            f"exemplar must have shape ({channels}, h, w), got {tuple(exemplar.shape)}: match the model's channels"
        )
    for at, length, total, side in zip(place, exemplar.shape[1:], size, patch, strict=True):
        if at < 0 or at + length > total:
            raise ValueError(
                f"exemplar must lie inside the canvas of {size[0]}x{size[1]}, got "
                f"{exemplar.shape[1]}x{exemplar.shape[2]} pixels at place {place}: crop it, or move it"
            )
        if (at + length) // side * side < math.ceil(at / side) * side + side:
            raise ValueError(
                f"exemplar must cover at least one level patch of {patch[0]}x{patch[1]} pixels, got "
                f"{exemplar.shape[1]}x{exemplar.shape[2]} pixels at place {place}: use multiples of the patch"
            )
