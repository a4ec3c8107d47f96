"""Laws of inpainting masks: what is known, and that a seed means the same drawing everywhere."""

import hashlib
from functools import cache

import pytest
import torch
from noise.laws import rebuilt

from asyncdiff.noise.masks import MASKS, Extreme, Half, Lines, Square, SuperResolution, Thin, Wide, mask_by_name
from asyncdiff.shapes import known_patches

THIN, WIDE = MASKS["thin"], MASKS["wide"]
every_mask = pytest.mark.parametrize("name", MASKS)
every_drawn_mask = pytest.mark.parametrize("mask", [THIN, WIDE], ids=["thin", "wide"])
# First digits of the SHA-256 of packed masks, by set and size, for seeds 0, 1 and 99, or 0 alone: results are
# comparable while they do not change.
HASHES = {
    ("thin", 32): "694a9f1e5308cb8a 12a8ac5eafeebf8b 4cf3e7ce2778163b",
    ("thin", 64): "a494c51ecec8090b 566e3ceded4d08d0 f3dbd670a25e31f4",
    ("thin", 256): "ee70583d6e79f8e4 671b10ef15ac0ead e9af2ff2e8dfc3f7",
    ("wide", 32): "19f9046e70b4944a a1f645091c1a6558 feb6bfede883eb40",
    ("wide", 64): "f8562f5c44e29819 ea8993f9ba50dcdf b35b7d235b11a881",
    ("wide", 256): "b59b4dc217074bc5 9911545f3f0a534b 5e5ce8e8f4c74943",
    ("square", 32): "88908544f1ebec3e",
    ("square", 64): "bdb2b8e68b727e87",
    ("square", 256): "aed923bf206836b6",
    ("extreme", 32): "b5523c22eccc5d7a",
    ("extreme", 64): "75e281813db9cc02",
    ("extreme", 256): "620a84f779504ef2",
    ("half", 32): "3327ee6d236cc2d8",
    ("half", 64): "929495fe2859759b",
    ("half", 256): "024804ef90622cd3",
    ("lines", 32): "1c48a2ba50c7bbff",
    ("lines", 64): "193a93bee6224b7c",
    ("lines", 256): "c224b62595a3c6e5",
    ("super_resolution", 32): "c3773ea9b98538e6",
    ("super_resolution", 64): "e4d52f34c54ac2c1",
    ("super_resolution", 256): "afe44e094ad36798",
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
    for size in (32, 64, 256):
        drawings = [packed(drawn(MASKS[name], size, size, seed)) for seed in seeds]
        assert [hashlib.sha256(drawing).hexdigest()[:16] for drawing in drawings] == HASHES[name, size].split()


@every_mask
def test_masks_depend_on_the_seed_if_and_only_if_they_are_random(name):
    mask = MASKS[name]
    assert len(masks(mask, 30, 32, 32).flatten(1).unique(dim=0)) == (30 if mask.seed_dependent else 1)
    seeds = (3, 0, 3)
    expected = torch.stack([drawn(mask, 32, 24, seed) for seed in seeds])
    assert torch.equal(mask.per_image(32, 24, seeds=seeds), expected)


@every_mask
def test_masks_depend_on_neither_global_randomness_nor_the_default_type(name):
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(rebuilt(MASKS[name])(32, 32, seed=5), drawn(MASKS[name], 32, 32, 5))
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


@every_drawn_mask
def test_the_unknown_share_does_not_depend_on_the_size(mask):
    shares = [unknown_share(masks(mask, 40, size, size)) for size in (64, 256)]
    # The same drawings: their difference is rasterization alone, whose spread is far below that of the shares.
    difference = shares[0] - shares[1]
    assert abs(difference.mean()) < 4 * difference.std() / 40**0.5 + 1e-3
    assert difference.std() < 0.3 * shares[1].std()


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
    with pytest.raises(ValueError, match=r"super_resolution, got 'Thinn': did you mean thin\?"):
        mask_by_name("Thinn")
    with pytest.raises(ValueError, match="got 'qqq': choose one of them"):
        mask_by_name("qqq")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(1.0), "fraction must lie in"),
        (lambda: Lines(every=1), "every must be at least 2, got 1"),
        (lambda: SuperResolution(factor=1), "factor must be at least 2, got 1"),
        (lambda: Thin(most=3), "most must be at least 4, got 3"),
        (lambda: Wide(boxes=1.5), r"boxes must lie in \[0, 1\], got 1.5"),
        (lambda: Thin()(32, 4), "width must be at least 8, got 4"),
        (
            lambda: Thin(fewest=12, most=12, length=200, width=100)(8, 8),
            "no drawing with at least 12 strokes of up to 100 pixels left half of",
        ),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_sides_are_refused():
    with pytest.raises((ValueError, TypeError), match="middle"):  # in tests, the type check refuses it first
        Half("middle")
