"""Models of latents: sizes and photos in pixels, known pixels bit for bit, all images decoded by the codec."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from latent_models import Means, data_of, model_of, tiny_files
from photo_files import pixels_of, random_photo
from PIL import Image
from small_runs import quiet_trainer

from asyncdiff.__main__ import main
from asyncdiff.callbacks import InpaintingGrid, SampleGrid
from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.inpainting_benchmark import InpaintingBenchmark, ValidationImages
from asyncdiff.latents import Codec, Identity, Moments, TinyAutoencoder
from asyncdiff.noise.masks import Half
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.tasks import Autoregress, Edit, Generate, Inpaint, Outpaint, PixelSpace, Texture
from asyncdiff.tasks.photos import PhotoWarning, to_model
from asyncdiff.tasks.pixel_space import fill_unknown

ROOT = Path(__file__).resolve().parents[2]


class Cells(Codec):
    """Exactly invertible codec: moves the 4x4 pixels of a cell into channels, and halves them."""

    channels, pixel_channels, factor, scale = 48, 3, 4, 0.5

    def __init__(self):
        self.decoded = 0

    def moments(self, images):
        return Moments(F.pixel_unshuffle(images, 4), None)

    def decode(self, latents):
        self.decoded += 1
        return F.pixel_shuffle(self.unscaled(latents), 4)

    def weights_sha256(self):
        return None


@pytest.fixture
def model():
    """Model of 8x8 latents of 4x4 pixels each, in patches of 2x2 latents."""
    return model_of(Cells(), 48, 8)


@pytest.fixture
def photo(tmp_path):
    return random_photo(tmp_path / "photo.png", 32, 32)


# Sizes


def test_sizes_are_in_pixels_and_images_decoded_samples(model):
    assert PixelSpace(model).window == (3, 32, 32)
    assert PixelSpace(model).patch == (8, 8)
    assert Generate().sample(model, seeds=[0]).shape == (1, 3, 32, 32)
    assert Generate("40x16").sample(model, seeds=[0]).shape == (1, 3, 40, 16)
    with pytest.raises(ValueError, match="multiples of the patch size 8x8 in pixels, got 36x32: .* 2x2 latents"):
        Generate("36x32").requests(model, seeds=[0])
    drawn = Generate().sample(model, seeds=[3, 5])
    assert torch.equal(drawn, model.decode(model.generate([3, 5])))
    assert torch.equal(Generate().sample(model, seeds=[5])[0], drawn[1])


def test_the_identity_codec_changes_nothing(photo):
    plain, through = model_of(None, 3, 32), model_of(Identity(), 3, 32)
    for task in (
        Generate(),
        Inpaint(photo),
        Edit(photo, "0.4"),
        Outpaint(photo, right=3, top=5, overlap=0.25),
        Autoregress("spiral", 0.5, 4, image=photo, mask="half"),
        Texture(photo, "40x48", tileable=True, piece="8x8"),
    ):
        assert torch.equal(task.sample(plain, seeds=[1]), task.sample(through, seeds=[1]))


# What is known


def test_edits_start_from_the_encoded_photo(model, photo, tmp_path):
    """The level of a patch of latents is the highest of its pixels'; pixels of another level than 1 are encoded."""
    grey = np.repeat(np.array([0, 51, 204, 255], np.uint8), 8)[None].repeat(32, 0)
    Image.fromarray(grey).save(tmp_path / "levels.png")
    drawn = Edit(photo, str(tmp_path / "levels.png")).sample(model, seeds=[2])
    image, known = to_model(pixels_of(photo)), torch.arange(32).expand(32, 32) < 8
    assert torch.equal(drawn[0, :, known], image[:, known])
    latents = model.sampler(
        model.denoiser,
        seeds=[2],
        shape=model.shape,
        image=model.encode(fill_unknown(image[None], torch.arange(32).expand(1, 32, 32) < 24)),
        known=torch.arange(8).expand(1, 8, 8) < 2,
        levels=torch.tensor([[[0, 0.2, 0.8, 1]]]).expand(1, 4, 4),
    )
    assert torch.allclose(drawn[0, :, ~known], model.decode(latents)[0, :, ~known], atol=1e-5)


@pytest.mark.parametrize(
    ("task", "place", "size"),
    [
        (lambda p: Outpaint(p, right=8), (0, 0), (32, 40)),
        (lambda p: Outpaint(p, right=8, size="16x16"), (0, 0), (16, 24)),
        (lambda p: Outpaint(p, left=5, bottom=7, top=3), (3, 5), (42, 37)),
        (lambda p: Outpaint(p, to="64x72"), (16, 16), (64, 72)),
        (lambda p: Texture(p, "50x61"), (8, 8), (50, 61)),
        (lambda p: Texture(p, "48x64", tileable=True, piece="16x16"), (16, 24), (48, 64)),
    ],
)
def test_photos_stay_bit_for_bit_where_they_are_placed(task, place, size, model, photo):
    request = task(photo).requests(model, seeds=[0])[0]
    drawn = task(photo).sample(model, seeds=[0])[0]
    assert drawn.shape[1:] == size
    (top, left), (h, w) = request.photo.place, request.photo.size
    assert (top, left) == place
    assert torch.equal(drawn[:, top : top + h, left : left + w], request.photo.image)


@pytest.mark.parametrize("mask", ["half", "thin", "lines"])
@pytest.mark.filterwarnings("ignore::asyncdiff.tasks.photos.PhotoWarning")
def test_known_pixels_are_kept_and_unknown_ones_have_no_effect(model, photo, mask, tmp_path):
    (request,) = Inpaint(photo, mask).requests(model, seeds=[0])
    drawn = Inpaint(photo, mask).sample(model, seeds=[0])[0]
    truth, known = to_model(pixels_of(photo)), request.photo.known
    assert torch.equal(drawn[:, known], truth[:, known])
    other = pixels_of(photo)
    other[:, ~known] = 255 - other[:, ~known]
    Image.fromarray(other.permute(1, 2, 0).numpy()).save(tmp_path / "other.png")
    assert torch.equal(Inpaint(str(tmp_path / "other.png"), mask).sample(model, seeds=[0])[0], drawn)


def test_latents_are_known_if_all_their_pixels_are_known(model, photo):
    """One more known pixel that completes no latent changes nothing else, though latents depend on known neighbors."""
    (request,) = Inpaint(photo, "half").requests(model, seeds=[0])
    given = request.photo.known
    more = given.clone()
    more[0, given.int().sum(1)[0]] = True  # first pixel right of the known half
    requests = [request._replace(photo=request.photo._replace(known=known)) for known in (given, more)]
    first, second = (Inpaint("").sample_batch(model, [each]) for each in requests)
    same = (first == second).all(1)[0]
    assert int((~same).sum()) == 1
    assert not same[0, 16]


def test_unknown_pixels_are_filled_smoothly():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    known = torch.ones(1, 32, 32, dtype=torch.bool)
    known[:, 8:24, 12:20] = False
    noisy = torch.where(known[:, None], ramp, torch.full_like(ramp, torch.nan).nan_to_num(9.0))
    back = fill_unknown(noisy, known)
    assert torch.equal(back[known[:, None].expand_as(back)], ramp[known[:, None].expand_as(ramp)])
    assert (back - ramp).abs().max() < 0.3  # of a range of 2, in a hole of a quarter of it
    assert torch.equal(fill_unknown(ramp, torch.zeros_like(known)), torch.zeros_like(ramp))


def test_masks_without_known_latents_give_a_warning(model, photo):
    with pytest.warns(PhotoWarning, match="no latent of 4x4 pixels is fully known in photo: .* do not influence"):
        Inpaint(photo, "lines").requests(model, seeds=[0])


def test_photos_that_cover_no_patch_are_refused(model, tmp_path):
    small = random_photo(tmp_path / "small.png", 8, 32)
    with pytest.raises(ValueError, match="cover a complete patch of 8x8 pixels, got a photo of 8x32 at position 3x0"):
        Outpaint(small, top=3, bottom=40, fit="keep").requests(model, seeds=[0])


def test_tileable_images_are_decoded_periodically(tmp_path):
    model = model_of(tiny_files(tmp_path), 4, 8)
    space = PixelSpace(model)
    latents = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    shifted = space.decode(latents.roll((2, 3), (2, 3)), (48, 80), tileable=True)
    expected = space.decode(latents, (48, 80), tileable=True).roll((16, 24), (2, 3))
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)
    plain = space.decode(latents, (48, 80))
    assert (plain - space.decode(latents, (48, 80), tileable=True)).abs().max() > 1e-3


def test_states_are_decoded_on_access(model):
    (request,) = Generate().requests(model, seeds=[0])
    Generate().sample_batch(model, [request])
    assert model.codec.decoded == 1
    states = list(Generate().states(model, [request]))
    assert [state.images.shape for state in states] == [(1, 3, 32, 32)] * 4
    assert model.codec.decoded == 5


# A run on latents


def test_images_of_a_run_are_in_pixels(latent_run):
    trainer, folder = latent_run
    sizes = {
        name: Image.open(folder / "images" / f"{name}.png").size for name in ("samples", "inpainting", "denoising")
    }
    # 32 pixels, twice as large, 2 between them; the strip has two grids below each other.
    assert sizes == {"samples": (134, 134), "inpainting": (200, 134), "denoising": (200, 136)}
    module = trainer.lightning_module
    drawn = module.decode(module.generate(range(4)))
    grid = SampleGrid(count=4, columns=2).draw(trainer, module)
    assert torch.equal(grid[:, 2:66:2, 2:66:2], (drawn[0] * 0.5 + 0.5).clamp(0, 1))


def test_inpainting_mask_covers_the_pixels_of_its_latents(latent_run):
    trainer, _ = latent_run
    figure = InpaintingGrid(Half(), count=2, columns=1).draw(trainer, trainer.lightning_module)
    given, truth = figure[:, 2:66, 2:66], figure[:, 2:66, 134:198]
    assert torch.equal(given[..., :32], truth[..., :32])
    assert given[..., 32:].flatten(1).unique(dim=1).shape[1] == 1


def test_frechet_distances_are_computed_against_reconstructions(latent_run):
    trainer, folder = latent_run
    results = trainer.callbacks[3].results
    assert set(results) == {"frechet/means", "frechet/means_real", "frechet/means_inpainted"}
    metric, decode = FrechetDistance(Means()), trainer.lightning_module.decode
    for split, real in (("train", True), ("val", False)):
        metric.update(decode(torch.from_numpy(np.load(folder / f"{split}.npy"))), real=real)
    assert results["frechet/means_real"] == pytest.approx(metric.compute().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (lambda c: TinyAutoencoder(c.encoder, c.decoder, 0.5), "got scale 0.5 instead of 1: set model.codec"),
        (lambda c: TinyAutoencoder("gone", c.decoder), "encoder must be an existing weights file, got gone"),
    ],
)
def test_a_codec_that_differs_from_the_data_s_is_refused_at_the_start(latent_run, codec, message):
    trainer, folder = latent_run
    given = trainer.lightning_module.codec
    other = model_of(codec(given), 4, 4)
    again = quiet_trainer(folder, max_steps=1)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        again.fit(other, datamodule=data_of(folder, given))


def test_training_without_a_codec_needs_none(latent_run):
    trainer, folder = latent_run
    data = data_of(folder, trainer.lightning_module.codec)
    again = quiet_trainer(folder, max_steps=1)
    plain = model_of(None, 4, 4)
    again.fit(plain, datamodule=data)
    with pytest.raises(ValueError, match="got 4: set model.codec to decode latents"):
        SampleGrid(count=1).draw(again, plain)


class Difference(torch.nn.Module):
    name = "difference"

    def forward(self, images, others):
        assert images.shape[1:] == (3, 32, 32)
        return (images - others).abs().mean((1, 2, 3))


def test_the_benchmark_compares_decoded_images(model):
    latents = torch.randn(3, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    given, sampler = ValidationImages(latents, [0, 1, 2]), Sampler(steps=2)
    bench = InpaintingBenchmark(lpips=Difference(), decode=model.decode)
    found = bench.evaluate(model.denoiser, given, ("half", Half()), ("own", sampler))
    drawn = bench.inpaint(model.denoiser, given, given.masks(Half()), sampler)
    assert torch.equal(drawn[..., :4], latents[..., :4])
    expected = Difference()(model.decode(drawn), model.decode(latents))
    torch.testing.assert_close(found.lpips, expected)


# Commands


def test_commands_encode_and_decode_with_the_codec(latent_run, tmp_path, capsys):
    _, folder = latent_run
    photo = random_photo(tmp_path / "photo.png", 50, 40)
    main(["inpaint", str(folder), "--image", photo, "--mask", "half", "--fit", "keep", "--gif", "--output", "drawn"])
    drawn, truth = pixels_of("drawn/photo_seed0.png"), pixels_of(photo)
    assert drawn.shape == (3, 48, 32)
    assert torch.equal(drawn[:, :, :16], truth[:, 1:49, 4:20])
    assert "movie: drawn/walk.gif" in capsys.readouterr().out


def test_a_codec_that_moved_is_named_on_the_command_line(latent_run, tmp_path, capfd, monkeypatch):
    _, folder = latent_run
    for name in ("encoder", "decoder"):
        (folder / f"{name}.safetensors").rename(tmp_path / f"{name}.safetensors")
    words = ["sample", str(folder), "--seeds", "0", "--output", "drawn"]
    try:
        with pytest.raises(SystemExit):
            main(words)
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: encoder must be an existing weights file, got {folder}/encoder.safetensors")
        assert line.endswith("set model.codec, or --codec, to the path of one")
        file = tmp_path / "codec.yaml"
        file.write_text((ROOT / "experiments" / "codecs" / "taef2.yaml").read_text().replace("taef2_", ""))
        monkeypatch.setenv("ASYNCDIFF_WEIGHTS", str(tmp_path))
        main([*words, "--codec", str(file)])
        with pytest.raises(SystemExit):
            main([*words, "--codec", "Identity", "--output", "other"])
        assert "--codec has 3 channels, but the model has 4: choose a codec" in capfd.readouterr().err
    finally:
        for name in ("encoder", "decoder"):
            (tmp_path / f"{name}.safetensors").rename(folder / f"{name}.safetensors")
    assert pixels_of("drawn/000000.png").shape == (3, 32, 32)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
