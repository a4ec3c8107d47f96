"""Laws of inpainting masks: what is known, and that a seed means the same drawing everywhere."""

import hashlib
from functools import cache

import pytest
import torch
from noise.laws import rebuilt, refusals
from torch.nn.functional import max_pool2d

from asyncdiff.noise.masks import (
    MASKS,
    Extreme,
    Half,
    Lines,
    OnPixels,
    Square,
    SuperResolution,
    Thin,
    Wide,
    mask_by_name,
)
from asyncdiff.shapes import known_patches

THIN, WIDE = MASKS["thin"], MASKS["wide"]
every_mask = pytest.mark.parametrize("name", MASKS)
every_drawn_mask = pytest.mark.parametrize("mask", [THIN, WIDE], ids=["thin", "wide"])
# First digits of the SHA-256 of masks of 32, 64 and 256 pixels, random ones with three seeds: results are comparable
# while they do not change.
HASHES = {
    "thin": "e58d40eb71dcb5ec",
    "wide": "4a8723add3db6ca8",
    "square": "4dca6aa603845df5",
    "extreme": "2d857da48851b38c",
    "half": "f3517cc34c932f96",
    "lines": "94e411515bbceff0",
    "super_resolution": "3d45e7be2d9a4c89",
}

drawn = cache(lambda mask, height, width, seed: mask(height, width, seed=seed))


def masks(mask, count: int, *size: int) -> torch.Tensor:
    return torch.stack([drawn(mask, *size, seed) for seed in range(count)])


def unknown_share(masks: torch.Tensor) -> torch.Tensor:
    return (~masks).double().mean((1, 2))


def packed(mask: torch.Tensor) -> bytes:
    """Eight pixels a byte, row after row, the first pixel the highest bit."""
    bits = mask.flatten().reshape(-1, 8).int()
    return bytes((bits * torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])).sum(1).tolist())


def test_halves_are_known():
    columns, rows = torch.arange(7).expand(9, 7), torch.arange(9)[:, None].expand(9, 7)
    halves = {"left": columns < 3, "right": columns > 3, "top": rows < 4, "bottom": rows > 4}  # not the middle
    for side, known in halves.items():
        assert torch.equal(Half(side)(9, 7), known)
    assert Half("right")(8, 6).sum() == Half("bottom")(8, 6).sum() == 24


@pytest.mark.parametrize("size", [(8, 8), (64, 32), (7, 9)])
def test_square_hides_a_centered_box_and_extreme_is_its_complement(size):
    assert (Square()(*size) ^ Extreme()(*size)).all()
    known = Square()(8, 12)
    assert (~known).sum() == 4 * 6
    assert not known[2:6, 3:9].any()


def test_lines_are_rows_or_columns():
    known = Lines(every=3)(7, 5)
    assert known[[0, 3, 6]].all()
    assert known.sum() == 3 * 5
    assert torch.equal(Lines(every=3, axis="columns")(5, 7), known.T)


@pytest.mark.parametrize(("factor", "count"), [(2, 4 * 3), (4, 2 * 2)])
def test_one_pixel_of_every_block_is_known(factor, count):
    known = SuperResolution(factor)(8, 6)
    assert known.sum() == count
    assert known[::factor, ::factor].all()


@every_mask
def test_masks_match_stored_drawings(name):
    seeds = (0, 1, 99) if MASKS[name].seed_dependent else (0,)
    drawings = [packed(drawn(MASKS[name], size, size, seed)) for size in (32, 64, 256) for seed in seeds]
    assert hashlib.sha256(b"".join(drawings)).hexdigest()[:16] == HASHES[name]


@every_mask
def test_masks_depend_on_the_seed_if_and_only_if_they_are_random(name):
    mask = MASKS[name]
    assert len(masks(mask, 30, 32, 32).flatten(1).unique(dim=0)) == (30 if mask.seed_dependent else 1)
    seeds = (3, 0, 3)
    expected = torch.stack([drawn(mask, 32, 24, seed) for seed in seeds])
    assert torch.equal(mask.per_image(32, 24, seeds=seeds), expected)


@every_mask
def test_masks_depend_on_neither_global_randomness_nor_the_default_type(name):
    first, before = drawn(MASKS[name], 32, 32, 5), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(rebuilt(MASKS[name])(32, 32, seed=5), first)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@every_drawn_mask
@pytest.mark.parametrize(("size", "count"), [((8, 8), 12), ((32, 32), 40), ((17, 40), 40), ((64, 16), 40)])
def test_at_least_one_and_at_most_half_of_the_pixels_are_unknown(mask, size, count):
    share = unknown_share(masks(mask, count, *size))  # few of 8x8, which take many attempts
    assert share.min() > 0
    assert share.max() <= 0.5


@every_drawn_mask
def test_a_seed_gives_the_same_drawing_at_every_size(mask):
    # Pixel (2, 2) of 5 x 5 shares its center with the small image's pixel: 5 x 64 pixels sample the same geometry.
    small, large = masks(mask, 20, 64, 64), masks(mask, 20, 320, 320)[:, 2::5, 2::5]
    assert (small == large).float().mean() > 0.995


def test_wide_hides_more_than_thin_in_larger_pieces():
    thin, wide = masks(THIN, 60, 64, 64), masks(WIDE, 60, 64, 64)
    assert unknown_share(wide).mean() > unknown_share(thin).mean() + 0.05
    thin_patches, wide_patches = (known_patches(~known, (8, 8)).double().mean() for known in (thin, wide))
    assert wide_patches > 4 * thin_patches  # shares of patches without a known pixel


def test_boxes_are_added_with_their_probability():
    # Random numbers are the same up to the boxes: where none are added the drawings are equal.
    never, sometimes, always = (masks(Wide(most=1, boxes=p), 300, 32, 32) for p in (0.0, 0.3, 1.0))
    without = [(never == other).flatten(1).all(1).double().mean().item() for other in (sometimes, always)]
    assert without[0] == pytest.approx(0.7, abs=0.1)
    assert without[1] < 0.05  # a box may lie where everything is hidden already


def test_a_stroke_is_never_narrower_than_a_pixel():
    # One stroke of 5/256, at 16 pixels a third of one: unbroken, it has a pixel in every row and column that it passes.
    for known in masks(Thin(fewest=1, most=1, length=40, width=5), 50, 16, 16):
        for axis in (0, 1):
            places = (~known).any(axis).nonzero().flatten()
            assert len(places) == places.max() - places.min() + 1


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("lines", 0, 0), ("super_resolution", 0, 0), ("thin", 0.2, 0.45), ("wide", 0.45, 0.7)],
)
def test_patches_count_as_known_where_all_their_pixels_are(name, least, most):
    known = masks(MASKS[name], 60, 32, 32)
    assert least <= known_patches(known, (8, 8)).double().mean() <= most
    assert torch.equal(known_patches(known, (32, 32)), known)  # patches of one pixel


def test_masks_are_found_by_name():
    assert list(MASKS) == ["thin", "wide", "square", "extreme", "half", "lines", "super_resolution"]
    assert mask_by_name("wide") is WIDE


def test_unknown_sides_are_refused():
    with pytest.raises((ValueError, TypeError), match="middle"):  # in tests, the type check refuses it first
        Half("middle")


CROWDED = Thin(fewest=12, most=12, length=200, width=100)
test_invalid_arguments_are_refused = refusals(
    {
        "fraction must lie in (0, 1), got 1.0": lambda: Square(1.0),
        "every must be at least 2, got 1": lambda: Lines(every=1),
        "factor must be at least 2, got 1": lambda: SuperResolution(factor=1),
        "factor must be at least 1, got 0": lambda: OnPixels(Half(), 0),
        "most must be at least 4, got 3": lambda: Thin(most=3),
        "boxes must lie in [0, 1], got 1.5": lambda: Wide(boxes=1.5),
        "width must be at least 8, got 4": lambda: Thin()(32, 4),
        "no drawing with at least 12 strokes of up to 100 pixels left half of": lambda: CROWDED(8, 8),
        "super_resolution, got 'Thinn': did you mean thin?": lambda: mask_by_name("Thinn"),
        "got 'qqq': choose one of them": lambda: mask_by_name("qqq"),
    }
)


def test_a_latent_is_known_if_all_its_pixels_are_known():
    seeds = range(20)
    for name in ("thin", "wide", "square", "extreme"):
        drawn = OnPixels(MASKS[name], 4).per_image(64, 64, seeds=seeds)
        unknown = ~MASKS[name].per_image(256, 256, seeds=seeds)
        assert torch.equal(drawn, ~max_pool2d(unknown.float(), 4).bool())
        on_latents = MASKS[name].per_image(64, 64, seeds=seeds)
        assert (on_latents & ~drawn).any() == (name in ("thin", "wide"))
