import copy
import pickle

import pytest
import torch

from asyncdiff.shapes import (
    IndexedLevels,
    check_pixels,
    indexed,
    known_patches,
    level_map,
    mean_per_patch,
    sum_per_patch,
    to_pixels,
    upsampled_to,
)


def test_a_level_map_repeats_over_its_patches():
    t = torch.arange(6.0).reshape(1, 2, 3)
    pixels = to_pixels(t, (4, 9))
    assert pixels.shape == (1, 1, 4, 9)
    assert torch.equal(pixels[0, 0], t[0].repeat_interleave(2, 0).repeat_interleave(3, 1))


def test_patch_means_invert_the_repetition():
    t = torch.rand(3, 4, 2, dtype=torch.float64)
    assert torch.allclose(mean_per_patch(to_pixels(t, (8, 8)).expand(3, 5, 8, 8), (4, 2)), t, atol=1e-15)


def test_patch_sums_add_up_to_the_image():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(sum_per_patch(x, (2, 4)).sum((1, 2)), x.sum((1, 2, 3)))
    assert torch.allclose(sum_per_patch(x, (2, 4)), mean_per_patch(x, (2, 4)) * 3 * 4 * 2)


def test_a_patch_is_known_only_if_all_its_pixels_are():
    known = torch.ones(1, 4, 4, dtype=torch.bool)
    known[0, 1, 2] = False
    assert known_patches(known, (2, 2)).tolist() == [[[True, False], [True, True]]]


BYTES = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)  # values 0 to 191


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES, r"image must be floats in \[-1, 1\], got torch.uint8: pass images / 127.5 - 1 of bytes"),
        (BYTES.float(), r"image must lie in \[-1, 1\], got values from 0 to 191: pass images / 127.5 - 1"),
        (BYTES / 255, r"image must lie in \[-1, 1\], got multiples of 1/255 from 0 to 0.74902: pass 2 \* images - 1"),
        (BYTES[0] / 255, "got multiples of 1/255"),
        (BYTES[:, :1].half() * 2, "got values from 0 to 126"),
    ],
)
def test_pixels_of_another_range_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        check_pixels("image", images)


@pytest.mark.parametrize(
    "images",
    [
        BYTES / 127.5 - 1,
        (BYTES // 2 + 128) / 127.5 - 1,  # bright
        torch.zeros(2, 1, 4, 4),
        torch.ones(2, 1, 4, 4),
        torch.full((1, 1, 2, 2), torch.nan),
        torch.linspace(0, 1.9, 48).reshape(1, 3, 4, 4),  # generated, and bright
        30 * torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4),  # of a diverged model
        torch.arange(64.0).reshape(1, 4, 4, 4),  # latents
        torch.empty(0, 3, 4, 4),
        torch.eye(7)[None],  # too few to tell
    ],
)
def test_pixels_of_a_possible_range_are_accepted(images):
    check_pixels("image", images)


def test_unknown_pixels_may_have_any_value():
    image, known = torch.full((2, 1, 4, 4), 255.0), torch.zeros(4, 4, dtype=torch.bool)
    known[0] = True
    image[:, :, 0] = torch.tensor([-1.0, 0, 0.5, 1])
    check_pixels("image", image, known)
    check_pixels("image", image[0], known.expand(3, 4, 4))
    with pytest.raises(ValueError, match="values from 255 to 255"):
        check_pixels("image", image, ~known.expand(2, 4, 4))


def test_indexed_levels_are_the_map():
    t = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (4, 5, 6))]
    levels = indexed(t)
    assert levels.values.tolist() == [0.0, 0.5, 1.0]
    assert torch.equal(level_map(levels), t)
    assert indexed(levels) is levels
    assert torch.equal(levels.repeat(2, 1, 1).t, t.repeat(2, 1, 1))
    assert level_map(t) is t


def test_one_level_per_image_is_a_single_column():
    t = torch.rand(4)
    assert torch.equal(IndexedLevels.per_image(t).t, t[:, None, None])
    assert torch.equal(indexed(t[:, None, None].expand(4, 2, 3)).t, t[:, None, None])
    assert len(IndexedLevels.per_image(t[:3]).padded().values) == 4


def test_a_grid_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="level map of 3x3 patches does not divide an image of 8x8"):
        to_pixels(torch.zeros(1, 3, 3), (8, 8))


@pytest.mark.parametrize("coarse", [torch.rand(2, 2, 3), torch.arange(12).reshape(2, 2, 3), torch.rand(2, 2, 3) < 0.5])
def test_a_coarse_map_is_repeated_over_its_blocks(coarse):
    fine = upsampled_to(coarse, (4, 9))
    assert fine.dtype == coarse.dtype
    assert torch.equal(fine, coarse.repeat_interleave(2, 1).repeat_interleave(3, 2))
    assert torch.equal(upsampled_to(coarse, (2, 3)), coarse)


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (1, 3)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_a_coarse_map_that_does_not_divide_the_grid_is_refused(grid):
    with pytest.raises(
        ValueError, match=f"order has 2x3 values, which do not divide the level map of {grid[0]}x{grid[1]} patches"
    ):
        upsampled_to(torch.zeros(1, 2, 3), grid, "order")


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t[:, None, 0],
        lambda t: 1 - t,
        lambda t: t * torch.ones(3, 1, 1),
        lambda t: torch.ones(3, 1, 1) - t,
        lambda t: t == 0,
        lambda t: (t > 0.5) | ~(t < 0.2),
        lambda t: torch.cat([t, t, t + 1]),
        lambda t: torch.where(t > 0, t, 2.0),
        lambda t: torch.full_like(input=t, fill_value=len(t)),
        lambda t: t.mean((1, 2)).to(torch.float64),
        lambda t: torch.stack(list(t)),
        lambda t: t.new_zeros(t.shape, device=t.device),
    ],
)
def test_code_that_expects_a_tensor_works_with_indexed_levels(use):
    """Own denoisers and guidance of 0.2.0 always got tensors in sampling."""
    t = torch.rand(3, 2, 4).mul(4).round() / 4
    assert torch.equal(use(indexed(t)), use(t))


def test_indexed_levels_can_be_copied_and_have_no_private_attributes_of_a_tensor():
    levels = indexed(torch.rand(1, 2, 2))
    for same in (copy.copy(levels), copy.deepcopy(levels), pickle.loads(pickle.dumps(levels))):
        assert torch.equal(same.t, levels.t)
    assert not hasattr(levels, "_version")
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = levels.missing
