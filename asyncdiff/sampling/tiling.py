"""Images larger than the model's, window by window: each window is an inpainting around what is already there.

Each side of the canvas is cut into stretches of whole level patches. The first is a whole window; the others grow from
it both ways, each at the far end of a window whose other patches belong to stretches of lower rank. Where the canvas
wraps around, the last stretch closes the circle, with known patches on both of its sides.

A cell is a stretch of rows times one of columns. Its window is told of the cells whose ranks are not higher than its
own, neither in rows nor in columns. So cells with one sum of ranks know nothing of each other: they are drawn together,
in batches, and the result is that of drawing one after the other.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from asyncdiff.checks import at_least
from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.randomness import counter_key
from asyncdiff.sampling.batched import evaluation_mode
from asyncdiff.sampling.samplers import ImageSampler, Sampler


class TilingState(NamedTuple):
    """A canvas on its way.

    Attributes:
        done: windows drawn.
        windows: windows to be drawn in all.
        canvas: (c, H, W), 0 where nothing is drawn; later windows are written into it, so clone what is to stay.
    """

    done: int
    windows: int
    canvas: Float[Tensor, "c H W"]


@dataclass(frozen=True)
class Segment:
    """Part of one side of a canvas, in level patches; those of a side that wraps around count modulo its length.

    Attributes:
        first: its first patch.
        length: its patches.
        window: first patch of the window that draws it.
        rank: its window is told of stretches of lower rank.
    """

    first: int
    length: int
    window: int
    rank: int


@dataclass(frozen=True)
class WindowView:
    """What the window of a stretch sees of one side of the canvas, pixel by pixel.

    Attributes:
        index: place of the stretch along the side.
        rank: of the stretch.
        pixels: where the window's pixels lie on the canvas.
        ready: True for the stretch itself and for those of lower rank.
        fresh: True for the stretch itself.
        given: True for the exemplar.
    """

    index: int
    rank: int
    pixels: Int64[Tensor, " n"]
    ready: Bool[Tensor, " n"]
    fresh: Bool[Tensor, " n"]
    given: Bool[Tensor, " n"]

    @property
    def settled(self) -> bool:
        """Whether the exemplar covers all of the stretch."""
        return bool((self.given | ~self.fresh).all())


class TiledSampler:
    """Draws images of any size with a model of one size, on their own or around an exemplar; they may be tileable.

    The windows start where the exemplar is, without one in the middle of the canvas, and grow from there in all
    directions: with an overlap, every window but the first touches what is known. The result does not depend on
    `batch_size`. Besides the canvas, memory is needed for one batch of windows and for lists as long as its sides.

    Args:
        sampler: draws the windows, around what is known of them; `Sampler()` by default.
        overlap: share of a window's side that is known before, in [0, 1), rounded to whole level patches. 0.5 is usual;
            0 leaves seams. A window that closes a circle has half of it on either side.
        tileable: the canvas wraps around, top to bottom and left to right: its copies side by side show no seam. The
            two sides that the last window joins know nothing of each other: the window less its overlap, which lies
            between them, should be longer than what the texture remembers.
        batch_size: windows that go through the network together.
    """

    def __init__(
        self,
        sampler: ImageSampler | None = None,
        overlap: float = 0.5,
        tileable: bool = False,
        batch_size: int = 64,
    ):
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {overlap}: 0.5 is usual")
        if tileable and not overlap:
            raise ValueError("overlap must be positive for a tileable canvas, got 0: 0.5 is usual")
        at_least("batch_size", batch_size, 1, "set the windows that go through the network together")
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
        """One image of `size`; where the exemplar lies it is the exemplar, bit for bit.

        Args:
            denoiser: a trained denoiser, a guided one or an exact oracle.
            size: (H, W) of the image, at least a window; of a tileable one a multiple of the level patch. Other sizes
                are drawn up to the next multiple and cut off.
            shape: (c, h, w) of one window: the model's.
            seed: of all windows; the one in row i and column j has the seed `counter_key(seed, i, j)`.
            label: class of every window, None without.
            exemplar: known pixels, floating point in [-1, 1], at least one whole level patch of the canvas. Its pixels
                in other patches are told to the network as `ImageSampler` tells them.
            place: row and column of the canvas where the exemplar's first pixel lies; on a multiple of the level patch
                no patch is cut. What spans a tileable canvas from edge to edge meets itself there.
            device: where the denoiser is, and the canvas.
            dtype: floating type of the image.
        """
        stage = None
        for stage in self.steps(  # noqa: B007  the last one is wanted
            denoiser,
            size=size,
            shape=shape,
            seed=seed,
            label=label,
            exemplar=exemplar,
            place=place,
            device=device,
            dtype=dtype,
        ):
            pass
        assert stage is not None, "there is a stage before the first window"
        return stage.canvas

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
        """The canvas before the first window and after each batch of them, as `__call__` draws it."""
        grid = denoiser.grid((shape[1], shape[2]))
        patch = (shape[1] // grid[0], shape[2] // grid[1])
        self._check(size, shape, patch)
        if exemplar is not None:
            _check_exemplar(exemplar, place, size, shape[0], patch)
        canvas = torch.zeros(
            shape[0], *(math.ceil(n / p) * p for n, p in zip(size, patch, strict=True)), device=device, dtype=dtype
        )
        given = [range(0), range(0)]
        if exemplar is not None:
            given = [range(p, p + n) for p, n in zip(place, exemplar.shape[1:], strict=True)]
            canvas[:, given[0].start : given[0].stop, given[1].start : given[1].stop] = exemplar.to(device, dtype)
        rows, columns = (self._views(canvas.shape[k + 1], grid[k], patch[k], given[k]) for k in (0, 1))

        windows = len(rows) * len(columns) - sum(v.settled for v in rows) * sum(v.settled for v in columns)
        shown, done = canvas[:, : size[0], : size[1]], 0
        yield TilingState(done, windows, shown)
        for batch in _batches(rows, columns, self.batch_size):
            self._draw(canvas, batch, denoiser, seed, label)
            done += len(batch)
            yield TilingState(done, windows, shown)

    def _draw(
        self,
        canvas: Float[Tensor, "c H W"],
        cells: Sequence[tuple[WindowView, WindowView]],
        denoiser: DenoiserLike,
        seed: int,
        label: int | None,
    ) -> None:
        """Draw some windows that know nothing of each other, and write their cells into the canvas."""
        image = torch.stack([canvas[:, r.pixels[:, None], c.pixels] for r, c in cells])
        labels = None if label is None else torch.full((len(cells),), label, device=canvas.device)
        with evaluation_mode(denoiser) if isinstance(denoiser, nn.Module) else nullcontext():
            drawn = self.sampler(
                denoiser,
                seeds=[counter_key(seed, r.index, c.index) for r, c in cells],
                shape=(image.shape[1], image.shape[2], image.shape[3]),
                label=labels,
                image=image,
                known=torch.stack([_known(r, c) for r, c in cells]).to(canvas.device),
                device=canvas.device,
                dtype=canvas.dtype,
            )
        for (r, c), window in zip(cells, drawn, strict=True):
            canvas[:, r.pixels[r.fresh][:, None], c.pixels[c.fresh]] = window[:, r.fresh][:, :, c.fresh]

    def _views(self, pixels: int, window: int, patch: int, given: range) -> list[WindowView]:
        """What the windows see of a side of so many pixels, from its start to its end."""
        patches = pixels // patch
        overlap = _whole_patches(self.overlap, window, self.tileable) if self.tileable or patches > window else 0
        middle = (given.start + given.stop) / (2 * patch) if given else patches / 2
        cut = segments(patches, window, overlap, middle=middle, tileable=self.tileable)
        rank, owner = torch.empty(2, patches, dtype=torch.int64)
        for index, stretch in enumerate(cut):
            own = torch.arange(stretch.first, stretch.first + stretch.length) % patches
            rank[own], owner[own] = stretch.rank, index
        views = []
        for index, stretch in enumerate(cut):
            at = torch.arange(stretch.window * patch, (stretch.window + window) * patch) % pixels
            fresh = owner[at // patch] == index
            ready = fresh | (rank[at // patch] < stretch.rank)
            views.append(WindowView(index, stretch.rank, at, ready, fresh, (at >= given.start) & (at < given.stop)))
        return views

    def _check(self, size: tuple[int, int], shape: tuple[int, int, int], patch: tuple[int, int]) -> None:
        if size[0] < shape[1] or size[1] < shape[2]:
            raise ValueError(
                f"size must be at least that of a window, {shape[1]}x{shape[2]}, got {size[0]}x{size[1]}: "
                "draw a larger canvas and cut it"
            )
        if self.tileable and (size[0] % patch[0] or size[1] % patch[1]):
            raise ValueError(
                f"size must be a multiple of the level patch of {patch[0]}x{patch[1]} pixels for a tileable canvas, "
                f"got {size[0]}x{size[1]}: a canvas that is cut does not wrap around"
            )


def segments(patches: int, window: int, overlap: int, *, middle: float, tileable: bool) -> list[Segment]:
    """A side of a canvas cut into stretches, from its start to its end; all lengths in level patches.

    As few as can be: the outermost may be short. The window of every stretch ends with it, but for one that closes a
    circle: that lies in the middle of its window, and is no longer than to leave a known patch on both of its sides.

    Args:
        patches: length of the side, at least that of the window.
        window: length of a window.
        overlap: of a window with the stretches before, less than the window.
        middle: where the first window is wanted to have its centre.
        tileable: whether the side wraps around.
    """
    stride = window - overlap
    closing = min(stride, window - 2) if tileable else 0
    room = max(patches - closing - window, 0)
    # On multiples of the stride there is no window more than from an edge on.
    start = round((middle - window / 2) / stride) * stride
    if tileable:
        before = room // stride // 2 * stride
    else:
        start = before = min(max(start, 0), room)
    after = room - before
    length = min(window, patches - closing)
    cut = [Segment(start, length, start, 0)]
    for rank, grown in enumerate(range(0, after, stride), 1):
        end = start + window + min(grown + stride, after)
        cut.append(Segment(start + window + grown, end - start - window - grown, end - window, rank))
    for rank, grown in enumerate(range(0, before, stride), 1):
        first = start - min(grown + stride, before)
        cut.insert(0, Segment(first, start - grown - first, first, rank))
    if closing:
        first = start + length + after
        rank = 1 + max(stretch.rank for stretch in cut)
        cut.append(Segment(first, closing, first - (window - closing) // 2, rank))
    return cut


def _batches(
    rows: Sequence[WindowView], columns: Sequence[WindowView], size: int
) -> Iterator[list[tuple[WindowView, WindowView]]]:
    """The cells to be drawn, in batches of those that know nothing of each other."""
    by_rank: dict[int, list[WindowView]] = {}
    for column in columns:
        by_rank.setdefault(column.rank, []).append(column)
    for ranks in range(max(r.rank for r in rows) + max(by_rank) + 1):
        cells = ((r, c) for r in rows for c in by_rank.get(ranks - r.rank, []) if not (r.settled and c.settled))
        while batch := list(islice(cells, size)):
            yield batch


def _known(row: WindowView, column: WindowView) -> Bool[Tensor, "h w"]:
    """True where the window of a cell is told the pixels: those of cells before it, and the exemplar's."""
    before = row.ready[:, None] & column.ready & ~(row.fresh[:, None] & column.fresh)
    return before | (row.given[:, None] & column.given)


def _whole_patches(share: float, window: int, tileable: bool) -> int:
    """The overlap of windows of so many level patches."""
    overlap = round(share * window)
    if share and not 0 < overlap < window:
        raise ValueError(
            f"overlap must round to at least one level patch and less than a window's {window}, got {share} of them: "
            "choose another share, or a model of more patches"
        )
    if tileable and window < 3:
        raise ValueError(
            f"tileable needs windows of at least 3 level patches a side, got {window}: "
            "the last one has what is known on both of its sides"
        )
    return overlap


def _check_exemplar(
    exemplar: Tensor, place: tuple[int, int], size: tuple[int, int], channels: int, patch: tuple[int, int]
) -> None:
    if not exemplar.is_floating_point():
        raise ValueError(f"exemplar must be floating point in [-1, 1], got {exemplar.dtype}: use image / 127.5 - 1")
    if exemplar.ndim != 3 or exemplar.shape[0] != channels:
        raise ValueError(f"exemplar must be (c, h, w) of {channels} channels, got shape {tuple(exemplar.shape)}")
    for at, length, whole, side in zip(place, exemplar.shape[1:], size, patch, strict=True):
        if at < 0 or at + length > whole:
            raise ValueError(
                f"exemplar must lie inside the canvas of {size[0]}x{size[1]}, got "
                f"{exemplar.shape[1]}x{exemplar.shape[2]} pixels at place {place}: cut it, or move it"
            )
        if (at + length) // side * side < math.ceil(at / side) * side + side:
            raise ValueError(
                f"exemplar must hold a whole level patch of {patch[0]}x{patch[1]} pixels, got "
                f"{exemplar.shape[1]}x{exemplar.shape[2]} at place {place}: take multiples of the patch"
            )
