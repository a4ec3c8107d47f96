import hashlib

import pytest
import torch

from asyncdiff.checkpoints import object_config
from asyncdiff.noise.clean_patches import RandomMasks
from asyncdiff.noise.masks import MASKS, Extreme, Half, Lines, Square, SuperResolution, Thin, Wide, mask_by_name
from asyncdiff.randomness import RandomSource, seeded
from asyncdiff.shapes import known_patches

DRAWN = [Thin(), Wide()]
# First digits of the SHA-256 of packed masks, by set, size and seed: results are comparable while they do not change.
HASHES = {
    ("thin", 32, 0): "694a9f1e5308cb8a",
    ("thin", 32, 1): "12a8ac5eafeebf8b",
    ("thin", 32, 99): "4cf3e7ce2778163b",
    ("thin", 64, 0): "a494c51ecec8090b",
    ("thin", 64, 1): "566e3ceded4d08d0",
    ("thin", 64, 99): "f3dbd670a25e31f4",
    ("thin", 256, 0): "ee70583d6e79f8e4",
    ("thin", 256, 1): "671b10ef15ac0ead",
    ("thin", 256, 99): "e9af2ff2e8dfc3f7",
    ("wide", 32, 0): "19f9046e70b4944a",
    ("wide", 32, 1): "a1f645091c1a6558",
    ("wide", 32, 99): "feb6bfede883eb40",
    ("wide", 64, 0): "f8562f5c44e29819",
    ("wide", 64, 1): "ea8993f9ba50dcdf",
    ("wide", 64, 99): "b35b7d235b11a881",
    ("wide", 256, 0): "b59b4dc217074bc5",
    ("wide", 256, 1): "9911545f3f0a534b",
    ("wide", 256, 99): "5e5ce8e8f4c74943",
    ("square", 32, 0): "88908544f1ebec3e",
    ("square", 64, 0): "bdb2b8e68b727e87",
    ("square", 256, 0): "aed923bf206836b6",
    ("extreme", 32, 0): "b5523c22eccc5d7a",
    ("extreme", 64, 0): "75e281813db9cc02",
    ("extreme", 256, 0): "620a84f779504ef2",
    ("half", 32, 0): "3327ee6d236cc2d8",
    ("half", 64, 0): "929495fe2859759b",
    ("half", 256, 0): "024804ef90622cd3",
    ("lines", 32, 0): "1c48a2ba50c7bbff",
    ("lines", 64, 0): "193a93bee6224b7c",
    ("lines", 256, 0): "c224b62595a3c6e5",
    ("super_resolution", 32, 0): "c3773ea9b98538e6",
    ("super_resolution", 64, 0): "e4d52f34c54ac2c1",
    ("super_resolution", 256, 0): "afe44e094ad36798",
}


def masks(mask, count: int, *size: int) -> torch.Tensor:
    return torch.stack([mask(*size, seed=seed) for seed in range(count)])


def unknown_share(masks: torch.Tensor) -> torch.Tensor:
    return (~masks).double().mean((1, 2))


def packed(mask: torch.Tensor) -> bytes:
    """Eight pixels a byte, row after row, the first pixel the highest bit."""
    bits = mask.flatten().reshape(-1, 8).int()
    return bytes((bits * torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])).sum(1).tolist())


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_half_is_known(side):
    known = Half(side)(8, 6)
    assert known.sum() == 24
    corner = {"left": (0, 0), "right": (0, 5), "top": (0, 0), "bottom": (7, 0)}[side]
    assert known[corner]


def test_opposite_halves_add_up_to_the_image():
    assert (Half("left")(8, 8) ^ Half("right")(8, 8)).all()
    assert (Half("top")(8, 8) ^ Half("bottom")(8, 8)).all()


@pytest.mark.parametrize("size", [(8, 8), (64, 32), (7, 9)])
def test_extreme_is_the_complement_of_square(size):
    assert (Square()(*size) ^ Extreme()(*size)).all()


def test_square_hides_a_centered_quarter():
    known = Square()(8, 8)
    assert (~known).sum() == 16
    assert not known[2:6, 2:6].any()


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


@pytest.mark.parametrize("name", MASKS)
def test_masks_match_stored_drawings(name):
    for size in (32, 64, 256):
        for seed in (0, 1, 99) if MASKS[name].seed_dependent else (0,):
            found = hashlib.sha256(packed(MASKS[name](size, size, seed=seed))).hexdigest()
            assert found[:16] == HASHES[name, size, seed], (name, size, seed)


@pytest.mark.parametrize("name", MASKS)
def test_masks_differ_between_seeds_if_and_only_if_they_are_random(name):
    unique = len(masks(MASKS[name], 30, 32, 32).flatten(1).unique(dim=0))
    assert unique == (30 if MASKS[name].seed_dependent else 1)


@pytest.mark.parametrize("name", MASKS)
def test_masks_depend_on_neither_global_randomness_nor_the_default_type(name):
    first = MASKS[name](32, 32, seed=5)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(MASKS[name](32, 32, seed=5), first)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mask", DRAWN, ids=["thin", "wide"])
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 40), (64, 16)])
def test_at_least_one_and_at_most_half_of_the_pixels_are_unknown(mask, size):
    share = unknown_share(masks(mask, 40, *size))
    assert share.min() > 0
    assert share.max() <= 0.5


@pytest.mark.parametrize("mask", DRAWN, ids=["thin", "wide"])
def test_a_seed_gives_the_same_drawing_at_every_size(mask):
    # Pixel (2, 2) of 5 x 5 shares its center with the small image's pixel: 5 x 64 pixels sample the same geometry.
    small, large = masks(mask, 20, 64, 64), masks(mask, 20, 320, 320)[:, 2::5, 2::5]
    assert (small == large).float().mean() > 0.995


@pytest.mark.parametrize("mask", DRAWN, ids=["thin", "wide"])
def test_the_unknown_share_does_not_depend_on_the_size(mask):
    shares = [unknown_share(masks(mask, 40, size, size)) for size in (64, 256)]
    # The same drawings: their difference is rasterization alone, whose spread is far below that of the shares.
    difference = shares[0] - shares[1]
    assert abs(difference.mean()) < 4 * difference.std() / 40**0.5 + 1e-3
    assert difference.std() < 0.3 * shares[1].std()


def test_wide_hides_more_than_thin_in_larger_pieces():
    thin, wide = (masks(mask, 60, 64, 64) for mask in DRAWN)
    assert unknown_share(wide).mean() > unknown_share(thin).mean() + 0.05
    unknown_patches = [
        known_patches(~known, (8, 8)).double().mean() for known in (thin, wide)
    ]  # patches without a known pixel
    assert unknown_patches[1] > 4 * unknown_patches[0]


def test_boxes_are_added_with_their_probability():
    # Random numbers are the same up to the boxes: where none are added the drawings are equal.
    never, sometimes, always = (masks(Wide(most=1, boxes=p), 300, 32, 32) for p in (0.0, 0.3, 1.0))
    equal = (never == sometimes).flatten(1).all(1).double().mean()
    assert equal == pytest.approx(0.7, abs=0.1)
    assert (never == always).flatten(1).all(
        1
    ).double().mean() < 0.05  # a box may lie where everything is hidden already


def test_a_stroke_is_never_narrower_than_a_pixel():
    # One stroke of 5/256, at 16 pixels a third of one: unbroken, it has a pixel in every row and column that it passes.
    for known in masks(Thin(fewest=1, most=1, length=40, width=5), 50, 16, 16):
        for axis in (0, 1):
            places = (~known).any(axis).nonzero().flatten()
            assert len(places) == places.max() - places.min() + 1


def test_patches_count_as_known_where_all_their_pixels_are():
    for name, least, most in (("lines", 0, 0), ("super_resolution", 0, 0), ("thin", 0.2, 0.45), ("wide", 0.45, 0.7)):
        known = masks(MASKS[name], 60, 32, 32)
        coarse = known_patches(known, (8, 8)).double().mean()
        assert least <= coarse <= most, name
        fine = known_patches(known, (32, 32))  # patches of one pixel
        assert torch.equal(fine, known)


def test_per_image_returns_one_mask_per_seed():
    for mask in (Thin(), Half("top")):
        batch = mask.per_image(32, 24, seeds=[3, 0, 3])
        assert torch.equal(batch, torch.stack([mask(32, 24, seed=seed) for seed in (3, 0, 3)]))


def test_random_masks_draw_a_mask_for_every_image():
    source = RandomSource(40, (8, 8), generator=seeded(0))
    drawn = RandomMasks([Wide(), Square()]).sample(source)
    fixed = (drawn == Square()(8, 8)).flatten(1).all(1)
    assert 8 <= fixed.sum() <= 32
    assert len(drawn[~fixed].flatten(1).unique(dim=0)) > 0.8 * (~fixed).sum()


def test_masks_are_found_by_name():
    assert list(MASKS) == ["thin", "wide", "square", "extreme", "half", "lines", "super_resolution"]
    assert mask_by_name("wide") is MASKS["wide"]
    with pytest.raises(ValueError, match=r"super_resolution, got 'Thinn': did you mean thin\?"):
        mask_by_name("Thinn")
    with pytest.raises(ValueError, match="got 'qqq': choose one of them"):
        mask_by_name("qqq")


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_rebuilt_from_its_object_config(name):
    again = object_config.build(object_config.describe(MASKS[name]))
    assert torch.equal(again(32, 32, seed=3), MASKS[name](32, 32, seed=3))


def test_bad_arguments_are_refused():
    with pytest.raises((ValueError, TypeError), match="middle"):  # in tests, the type check refuses it first
        Half("middle")
    with pytest.raises(ValueError, match="fraction must lie in"):
        Square(1.0)
    with pytest.raises(ValueError, match="every must be at least 2, got 1"):
        Lines(every=1)
    with pytest.raises(ValueError, match="factor must be at least 2, got 1"):
        SuperResolution(factor=1)
    with pytest.raises(ValueError, match="most must be at least 4, got 3"):
        Thin(most=3)
    with pytest.raises(ValueError, match=r"boxes must lie in \[0, 1\], got 1.5"):
        Wide(boxes=1.5)
    with pytest.raises(ValueError, match="width must be at least 8, got 4"):
        Thin()(32, 4)


def test_strokes_that_always_hide_more_than_half_are_refused():
    with pytest.raises(ValueError, match="no drawing with at least 12 strokes of up to 100 pixels left half of"):
        Thin(fewest=12, most=12, length=200, width=100)(8, 8)
