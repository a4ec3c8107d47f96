"""Editing starts each patch from the photo noised to its own level, and keeps level 0 unchanged bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_files import pixels_of, random_photo
from PIL import Image
from small_runs import small_dit

from asyncdiff import DiffusionModel
from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import Spiral
from asyncdiff.noise.paths import AsyncPatch, Synchronous
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun
from asyncdiff.tasks import Autoregress, Edit, Inpaint
from asyncdiff.tasks.contact_sheet import UNKNOWN_COLOR, known_tile
from asyncdiff.tasks.photos import fit_levels, plan_fit, read_levels, to_bytes, to_model

SHAPE = (1, 4, 4)
MEAN, COVARIANCE = random_gaussian(16)
ORACLE = GaussianOracle(MEAN, COVARIANCE, (2, 2))
MAP = torch.tensor([[[0.0, 0.3], [0.6, 1.0]]], dtype=torch.float64)


def walked(sampler, image, levels, known=None, seeds=None):
    known = torch.zeros(len(image), 4, 4, dtype=torch.bool) if known is None else known
    seeds = range(len(image)) if seeds is None else seeds
    given = {"image": image, "known": known, "levels": levels.expand(len(image), 2, 2)}
    return sampler(ORACLE, seeds=seeds, shape=SHAPE, dtype=torch.float64, **given)


# The walk


@pytest.mark.parametrize("sampler", [Sampler(AsyncPatch(), DDIM(0.5), 40), Sampler(Synchronous(), Heun(), 15)])
def test_edits_of_true_images_are_true_images(sampler):
    """Samples of a Gaussian, noised to any level map and denoised, have its mean and covariance again."""
    n = 3000
    factor = torch.linalg.cholesky(COVARIANCE)
    image = MEAN + torch.randn(n, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ factor.T
    out = walked(sampler, image.reshape(n, *SHAPE), MAP).flatten(1)
    tolerance = 4 * (COVARIANCE.diagonal() / n).sqrt().max().item()
    assert torch.allclose(out.mean(0), MEAN, atol=tolerance + 0.01)
    assert torch.allclose(out.T.cov(), COVARIANCE, atol=0.06 * COVARIANCE.diagonal().max().item() + 0.01)


def test_patches_change_as_much_as_their_levels():
    """At 0 not a bit; where the levels are higher, more; at 1 nothing of the image is left."""
    factor = torch.linalg.cholesky(COVARIANCE)
    draws = torch.randn(2, 400, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    image, other = (MEAN + draws @ factor.T).reshape(2, 400, *SHAPE)
    sampler = Sampler(steps=20)
    out = walked(sampler, image, MAP)
    assert torch.equal(out[:, :, :2, :2], image[:, :, :2, :2])
    change = (out - image).square().mean((0, 1)).reshape(2, 2, 2, 2).mean((1, 3))
    spread = 2 * COVARIANCE.diagonal().reshape(2, 2, 2, 2).mean((1, 3))  # of two independent images
    share = (change / spread).flatten()
    assert share[0] == 0
    assert 0.01 < share[1] < 0.6 * share[2]
    assert share[2] < share[3]
    # Only the patch at 1 may be another image's: it is never read.
    other[:, :, :2], other[:, :, 2:, :2] = image[:, :, :2], image[:, :, 2:, :2]
    other[:, :, 2:, 2:] = torch.nan
    assert torch.equal(walked(sampler, other, MAP), out)


@pytest.mark.parametrize("sampler", [Sampler(steps=5), Autoregressive(Spiral(), 0.5, steps_per_patch=3)])
def test_black_and_white_start_levels_equal_inpainting(sampler):
    image = torch.randn(2, *SHAPE, dtype=torch.float64)
    known = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    known[:, :2, :2] = True
    patches = known.reshape(2, 2, 2, 2, 2).all(4).all(2)
    out = walked(sampler, image, 1 - patches.double(), known, seeds=[5, 6])
    expected = sampler(ORACLE, seeds=[5, 6], shape=SHAPE, image=image, known=known, dtype=torch.float64)
    assert torch.equal(out, expected)


def test_invalid_start_levels_are_refused():
    image = torch.zeros(1, *SHAPE, dtype=torch.float64)
    once = Sampler(steps=1)
    for sampler, levels, message in (
        (Adaptive(), MAP, "Adaptive always starts from pure noise, got levels"),
        (RePaint(), MAP, "RePaint always starts from pure noise, got levels"),
        (once, MAP * 1.5, r"levels must lie in \[0, 1\], got 1.5"),
        (once, MAP * torch.nan, "levels must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            walked(sampler, image, levels)
    given = {"seeds": [0], "shape": SHAPE, "dtype": torch.float64}
    with pytest.raises(ValueError, match=r"levels must have shape \(1, 2, 2\), one value per patch, got \(1, 1, 2\)"):
        once(ORACLE, image=image, known=image[:, 0] > 1, levels=MAP[:, :1], **given)
    with pytest.raises(ValueError, match="levels needs image and known, got levels alone"):
        once(ORACLE, levels=MAP, **given)


# The task


@pytest.fixture(scope="module")
def model():
    return DiffusionModel.assemble(small_dit(3, 3), sampler=Sampler(solver=DDIM(0.25), steps=3), image_size=8)


def saved(file, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(file)
    return str(file)


@pytest.fixture
def photo(tmp_path):
    return random_photo(tmp_path / "photo.png", 8, 8)


@pytest.fixture
def levels(tmp_path):
    """Black at the left, then a dark, a bright and a white column of patches; one pixel in the dark one is white."""
    grey = np.repeat(np.array([0, 51, 204, 255]), 2)[None].repeat(8, 0)
    grey[0, 2] = 255
    return saved(tmp_path / "levels.png", grey)


def test_an_edit_samples_from_its_levels(model, photo, levels):
    (request,) = Edit(photo, levels).requests(model, seeds=[4])
    assert torch.equal(request.photo.known, torch.arange(8).expand(8, 8) < 2)
    t = torch.tensor([[0, 0.2, 0.8, 1]]).expand(4, 4).clone()
    t[0, 1] = 1  # the highest level of a patch counts
    pixels = pixels_of(photo)
    given = {"image": to_model(pixels)[None], "known": request.photo.known[None], "levels": t[None]}
    expected = model.sampler(model.denoiser, seeds=[4], shape=(3, 8, 8), **given)
    drawn = Edit(photo, levels).sample(model, seeds=[4])
    assert torch.equal(drawn, expected)
    ordered = Autoregress("spiral", 0.5, 2, photo, levels=levels).sample(model, seeds=[4])
    assert not torch.equal(ordered, drawn)
    for images in (drawn, ordered):
        assert torch.equal(to_bytes(images)[0, :, :, :2], pixels[:, :, :2])


def test_an_edit_with_a_black_and_white_map_equals_inpainting(model, photo, tmp_path):
    known = Half()(8, 8)
    black = saved(tmp_path / "black.png", 255 * (~known).numpy())
    white = saved(tmp_path / "white.png", 255 * known.numpy())
    assert torch.equal(Edit(photo, black).sample(model, seeds=[1]), Inpaint(photo, white).sample(model, seeds=[1]))
    autoregressive = [Autoregress("snake", 0.5, 2, photo, **given) for given in ({"levels": black}, {"mask": white})]
    first, second = (task.sample(model, seeds=[1]) for task in autoregressive)
    assert torch.equal(first, second)


def test_one_level_equals_a_constant_map(model, photo, tmp_path):
    flat = saved(tmp_path / "flat.png", np.full((8, 8), 51))
    assert torch.equal(Edit(photo, "0.2").sample(model, seeds=[1]), Edit(photo, flat).sample(model, seeds=[1]))


def test_level_maps_are_resized_with_their_photos():
    plan = plan_fit((4, 8), (2, 2), "crop", (1, 1))
    levels = torch.zeros(4, 8)
    levels[1, 3], levels[3, 7] = 0.4, 1  # the second is cut off
    assert torch.equal(fit_levels(levels, plan), torch.tensor([[0.4, 0.0], [0.0, 0.0]]))


def test_gray_values_are_levels(tmp_path):
    assert torch.equal(
        read_levels(Path(saved(tmp_path / "a.png", [[0, 51], [102, 255]]))), torch.tensor([[0, 51], [102, 255]]) / 255
    )
    Image.new("LA", (2, 2), (7, 9)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"levels must be opaque, got 4 transparent pixels in .*b\.png"):
        read_levels(tmp_path / "b.png")


def test_a_sheet_shows_how_much_may_change(model, photo, levels):
    (request,) = Edit(photo, levels).requests(model, seeds=[0])
    tile, pixels = known_tile(request.photo, request.size), pixels_of(photo)
    assert torch.equal(tile[:, :, :2], pixels[:, :, :2])
    assert (tile[:, :, 6:] == torch.tensor(UNKNOWN_COLOR)[:, None, None]).all()
    between = 0.2 * torch.tensor(UNKNOWN_COLOR) + 0.8 * pixels[:, 5, 3]
    assert torch.equal(tile[:, 5, 3].int(), between.round().int())


def test_mistakes_in_edits_are_refused(model, photo, levels, tmp_path):
    black = saved(tmp_path / "black.png", np.zeros((8, 8)))
    wide = saved(tmp_path / "wide.png", np.zeros((8, 16)))
    for given, message in (
        ("0", r"levels must lie in \(0, 1\], got 0"),
        ("nan", r"levels must lie in \(0, 1\], got nan"),
        ("none.png", r"levels must be a number, or an existing file or folder, got none.png"),
        (black, "levels must be above 0 somewhere, got 0 for all of photo"),
        (wide, "levels must have the aspect ratio of its photo"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Edit(photo, given).requests(model, seeds=[0])
    for words in ({"levels": levels}, {"image": photo, "mask": "half", "levels": levels}):
        with pytest.raises(ValueError, match="levels need an image and no mask"):
            Autoregress(**words)
    with pytest.raises(ValueError, match="Edit needs a sampler that supports start levels, got RePaint"):
        Edit(photo, levels).requests(replace(model, sampler=RePaint()), seeds=[0])
