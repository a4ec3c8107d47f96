"""Tasks keep known pixels bit for bit, image i depends on seed i alone, and mistakes are refused before sampling."""

import inspect
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from photo_files import pixels_of, random_photo
from PIL import Image
from small_runs import small_dit

from asyncdiff import AsyncDiffusion, DiffusionModel
from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli.errors.suggestions import find_class
from asyncdiff.noise.masks import Half, Thin
from asyncdiff.noise.orders import CenterOut, Spiral, order_by_name
from asyncdiff.sampling.guidance import InputGuidance
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.solvers import DDIM
from asyncdiff.sampling.tiling import TiledSampler
from asyncdiff.tasks import Autoregress, Generate, Inpaint, Outpaint, Photo, Request, Texture
from asyncdiff.tasks.arguments import choose_output_folder
from asyncdiff.tasks.contact_sheet import (
    SHEET,
    UNKNOWN_COLOR,
    known_tile,
    make_sheet,
    write_images,
    write_sheet,
)
from asyncdiff.tasks.photos import PhotoWarning, to_bytes, to_model
from asyncdiff.training import PredictSettings

LAYERS = sorted((Path(__file__).resolve().parents[2] / "experiments" / "tasks").glob("*.yaml"))


@pytest.fixture(scope="module")
def model():
    """A model of 8x8 color images in patches of 2, with random weights and three classes."""
    return DiffusionModel.assemble(small_dit(3, 3), sampler=Sampler(solver=DDIM(0.25), steps=3), image_size=8)


@pytest.fixture
def photo(tmp_path):
    return random_photo(tmp_path / "photo.png", 8, 8)


# Results


def test_generate_agrees_with_the_model(model):
    drawn = Generate().sample(model, seeds=[4, 1, 2, 9])
    assert torch.equal(drawn, model.generate([4, 1, 2, 9], [0, 1, 2, 0]))
    assert torch.equal(Generate().sample(model, seeds=[4], labels=[]), model.generate([4]))


def test_other_multiples_of_the_patch_size_are_generated(model):
    assert Generate("4x10").sample(model, seeds=[0]).shape == (1, 3, 4, 10)
    with pytest.raises(
        ValueError, match="sides of the image must be multiples of the patch size 2x2 in pixels, got 5x8: 4x8 is"
    ):
        Generate("5x8").sample(model, seeds=[0])


def test_inpaint_agrees_with_the_model_for_every_photo_and_seed(model, tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        random_photo(tmp_path / name, 8, 8, seed)
    task = Inpaint(str(tmp_path), Half())
    requests = task.requests(model, seeds=[5, 7])
    assert [r.name for r in requests] == ["a_seed5", "a_seed7", "b_seed5", "b_seed7"]
    known = Half()(8, 8)
    expected = [model.inpaint(to_model(pixels_of(tmp_path / name)), known, seeds=[5, 7]) for name in ("a.png", "b.png")]
    assert torch.allclose(task.sample(model, seeds=[5, 7]), torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("mask", ["square", "thin", "lines", "extreme", "super_resolution"])
def test_known_pixels_equal_the_photo_in_the_written_file(mask, model, photo, tmp_path):
    task = Inpaint(photo, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        requests = task.requests(model, seeds=[0, 1])
    write_images(task.sample_batch(model, requests), requests, tmp_path / "out")
    truth = pixels_of(photo)
    for request in requests:
        drawn = pixels_of(tmp_path / "out" / f"{request.name}.png")
        assert torch.equal(drawn[:, request.photo.known], truth[:, request.photo.known])
        assert (drawn != truth)[:, ~request.photo.known].float().mean() > 0.5


def test_an_image_does_not_depend_on_its_batch(model, tmp_path):
    for i in range(3):
        random_photo(tmp_path / f"{i}.png", 12, 20, seed=i)
    task = Inpaint(str(tmp_path), "half")
    together = task.sample(model, seeds=[0, 1])
    requests = task.requests(model, seeds=[0, 1])
    assert [len(batch) for batch in task.batches(model, requests, batch_size=1)] == [1] * 6
    alone = task.sample(model, seeds=[0, 1], batch_size=1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_photos_of_several_sizes_are_batched_by_size(model, tmp_path):
    for i, (h, w) in enumerate([(8, 8), (9, 8), (8, 12)]):
        random_photo(tmp_path / f"{i}.png", h, w)
    task = Inpaint(str(tmp_path), "half", fit="keep")
    requests = task.requests(model, seeds=[0, 1])
    assert [len(batch) for batch in task.batches(model, requests)] == [4, 2]
    assert task.sample_batch(model, requests[-2:]).shape == (2, 3, 8, 12)
    with pytest.raises(ValueError, match="photos must have the same size, got 2 sizes"):
        task.sample(model, seeds=[0])


def test_autoregress_uses_the_model_s_solver_and_guidance(model, photo):
    guidance = InputGuidance(0.7)
    task = Autoregress("spiral", 0.5, 2, photo, "half")
    guided = replace(model, sampler=model.sampler.replace(guidance=[guidance]))
    sampler, drawn = task.sampler(guided), task.sample(guided, seeds=[3])
    assert isinstance(sampler.order, Spiral)
    assert sampler.guidance == [guidance]
    expected = Autoregressive(Spiral(), 0.5, DDIM(0.25), 2, [guidance])
    known = Half()(8, 8)
    assert torch.equal(drawn, model.inpaint(to_model(pixels_of(photo)), known, seeds=[3], sampler=expected))
    whole = Autoregress("raster", steps_per_patch=1).sample(model, seeds=[3, 4])
    assert torch.equal(whole, model.generate([3, 4], [0, 1], sampler=Autoregressive(None, 0.0, DDIM(0.25), 1)))


def test_tiled_outpainting_keeps_the_photo_at_its_position(model, photo):
    task = Outpaint(photo, top=2, right=6)
    drawn = task.sample(model, seeds=[0, 1])
    assert drawn.shape == (2, 3, 10, 14)
    assert torch.equal(to_bytes(drawn[:, :, 2:, :8]), pixels_of(photo).expand(2, -1, -1, -1))
    exemplar = to_model(pixels_of(photo))
    canvas = TiledSampler(model.sampler, 0.5)
    shape = {"size": (10, 14), "shape": (3, 8, 8)}
    assert torch.equal(drawn[1], canvas(model.denoiser, **shape, seed=1, exemplar=exemplar, place=(2, 0)))


def test_outpainting_within_the_training_size_is_inpainting(model, photo):
    drawn = Outpaint(photo, size="4x6", to="8x8").sample(model, seeds=[2])
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[2:6, 0:6] = True  # (8 - 6) // 2 is not a multiple of the patch size
    (request,) = Outpaint(photo, size="4x6", to="8x8").requests(model, seeds=[2])
    image, where = request.photo.padded_to(request.size)
    assert torch.equal(where, known)
    assert torch.equal(drawn, model.inpaint(image, known, seeds=[2]))


def test_a_texture_keeps_the_center_of_its_exemplar(model, tmp_path):
    wall = random_photo(tmp_path / "wall.png", 30, 21)
    task = Texture(wall, "16x20", tileable=True)
    (request,) = task.requests(model, seeds=[3])
    assert (request.name, request.photo.place) == ("wall_seed3", (4, 6))
    drawn = task.sample(model, seeds=[3])[0]
    middle = pixels_of(wall)[:, 11:19, 6:14]
    assert torch.equal(to_bytes(drawn[:, 4:12, 6:14]), middle)
    (smaller,) = Texture(wall, "16x20", scale=0.3, piece="40x5").requests(model, seeds=[0])
    assert smaller.photo.image.shape == (3, 8, 4)  # whole patches of 9x6 pixels
    plain = Texture(size="8x12").sample(model, seeds=[0], labels=[1])[0]
    canvas = TiledSampler(model.sampler, 0.5)
    assert torch.equal(plain, canvas(model.denoiser, size=(8, 12), shape=(3, 8, 8), seed=0, label=1))


# Requests


def test_labels_are_cycled(model, photo, tmp_path):
    def labels(task, seeds, given):
        return [r.label for r in task.requests(model, seeds=seeds, labels=given)]

    assert labels(Generate(), range(4), None) == [0, 1, 2, 0]
    assert labels(Generate(), range(3), [2, 0]) == [2, 0, 2]
    assert labels(Generate(), range(2), []) == [None, None]
    assert labels(Inpaint(photo), range(2), None) == [None, None]
    random_photo(tmp_path / "second.png", 8, 8)
    assert labels(Inpaint(str(tmp_path)), range(2), [2, 1]) == [2, 2, 1, 1]
    assert labels(Texture(), range(2), [1]) == [1, 1]
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 2, got 3"):
        Generate().requests(model, seeds=[0], labels=[3])
    with pytest.raises(ValueError, match="at most one label per photo, got 2 labels for 1"):
        Inpaint(photo).requests(model, seeds=[0, 1], labels=[0, 1])


def test_a_mask_file_is_resized_with_its_photo(model, tmp_path):
    photo = random_photo(tmp_path / "photo.png", 16, 32)
    mask = np.full((16, 32), 255, np.uint8)
    mask[:8, 8:16] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (request,) = Inpaint(photo, str(tmp_path / "mask.png")).requests(model, seeds=[0])
    expected = torch.ones(8, 8, dtype=torch.bool)
    expected[:4, :4] = False  # half the size, and the middle of its width
    assert torch.equal(request.photo.known, expected)
    (turned,) = Inpaint(photo, str(tmp_path / "mask.png"), mask_is_unknown=True).requests(model, seeds=[0])
    assert torch.equal(turned.photo.known, ~expected)
    plan = "16x32 pixels, resized to 8x16, cropped to its center 8x8"
    assert request.photo.note == f"{photo}: {plan}, with the mask {tmp_path / 'mask.png'}"
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "photo.png")
    (matched,) = Inpaint(photo, str(tmp_path / "masks")).requests(model, seeds=[0])
    assert torch.equal(matched.photo.known, expected)


def test_random_masks_differ_between_photos_not_between_seeds(model, tmp_path):
    for name in ("a.png", "b.png"):
        random_photo(tmp_path / name, 8, 8)
    requests = Inpaint(str(tmp_path), Thin(fewest=1, most=1), size="32x32", mask_seed=3).requests(model, seeds=[0, 1])
    assert torch.equal(requests[0].photo.known, requests[1].photo.known)
    assert not torch.equal(requests[0].photo.known, requests[2].photo.known)
    assert torch.equal(requests[2].photo.known, Thin(fewest=1, most=1)(32, 32, seed=4))


def test_files_of_the_same_name_give_images_of_different_names(model, tmp_path):
    for name in ("a.png", "a.bmp", "a-2.png"):  # the last has the name that the second might get
        random_photo(tmp_path / name, 8, 8)
    names = [r.name for r in Inpaint(str(tmp_path)).requests(model, seeds=[0])]
    assert sorted(names) == ["a-2_seed0", "a-3_seed0", "a_seed0"]


def test_latents_without_a_codec_are_refused():
    latent = DiffusionModel.assemble(small_dit(4), image_size=8)
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, but the model has 4: set model.codec"):
        Generate().requests(latent, seeds=[0])


def beside(photo: str, name: str) -> str:
    return str(Path(photo).parent / name)


MISTAKES = [
    (lambda p: Inpaint(p, "sqare"), "mask must be one of .* did you mean square"),
    (lambda p: Inpaint(p, "none.png"), "mask must be an existing file or folder, or the name of a mask set, got none"),
    (lambda p: Inpaint(p, size="9x8"), "multiples of the patch size 2x2 in pixels, got 9x8: 8x8 is the nearest"),
    (lambda p: Inpaint(p, size="big"), "size must be HEIGHTxWIDTH in pixels, got big"),
    (lambda p: Inpaint(p, size="8x8", fit="keep"), "size cannot be combined with fit='keep'"),
    (lambda p: Inpaint("none.jpg"), "image must be an image file, a folder or a pattern that matches files, got none"),
    (lambda p: Inpaint(p, beside(p, "white.png")), "mask must leave some pixels unknown, .* all of photo"),
    (lambda p: Inpaint(p, beside(p, "wide.png")), "mask must have the aspect ratio .* got .* 8x9 .* 8x8"),
    (lambda p: Inpaint(p, beside(p, "masks")), "mask folder .* exactly one image file named photo, got 0"),
    (lambda p: Outpaint(p), "set either to, the size of the result, or at least one of top, bottom, left, right"),
    (lambda p: Outpaint(p, right=4, to="8x16"), "set either to, the size of the result, or at least one of top"),
    (lambda p: Outpaint(p, right=-4), "right must be at least 0, got -4"),
    (lambda p: Outpaint(p, to="6x16"), "to must be larger than the photo of 8x8, got 6x16"),
    (lambda p: Outpaint(p, to="8x8"), "to must be larger than the photo"),
    (lambda p: Outpaint(p, right=3, size="4x4"), "multiples of the patch size 2x2 in pixels, got 4x7: 4x8 is"),
    (lambda p: Outpaint(p, right=4, overlap=7), r"overlap must lie in \[0, 1\), got 7"),
    (lambda p: Outpaint(beside(p, "low.png"), right=8, fit="keep"), "size .* 8x8, got 4x12"),
    (lambda p: Texture(overlap=1.5), r"overlap must lie in \[0, 1\), got 1.5"),
    (lambda p: Texture(size="4x4"), "size must be at least the training size 8x8, got 4x4"),
    (lambda p: Autoregress("spirl"), "order must be one of .* got spirl; did you mean spiral"),
    (lambda p: Autoregress(overlap=1.0), "overlap"),
    (lambda p: Autoregress(steps_per_patch=0), "steps_per_patch must be at least 1"),
    (lambda p: Autoregress(image=p), "image and mask must be given together, got image without mask"),
    (lambda p: Autoregress(mask="half"), "image and mask must be given together, got mask without image"),
    (lambda p: Autoregress(mask_seed=3), "mask_is_unknown, mask_seed and fit need an image"),
    (lambda p: Texture(scale=0.5), "scale and piece need an exemplar"),
    (lambda p: Texture(p, scale=0.0), "scale must be positive"),
    (lambda p: Texture(p, piece="1x8"), "exemplar must contain at least one patch of 2x2 pixels, got 8x8, cropped to"),
    (lambda p: Texture(beside(p, "")), "exemplar must be one image file, got 4"),
]


@pytest.mark.parametrize(("task", "message"), MISTAKES)
def test_mistakes_are_refused_before_sampling(task, message, model, photo, tmp_path):
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "white.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "wide.png")
    random_photo(tmp_path / "low.png", 4, 4)
    (tmp_path / "masks").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        task(photo).requests(model, seeds=[0])
    assert "\n" not in str(error.value)


def test_masks_without_known_patches_give_a_warning(model, photo, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    with pytest.warns(PhotoWarning, match="no pixel of photo is known: the results do not depend on it"):
        Inpaint(photo, str(tmp_path / "black.png")).requests(model, seeds=[0])
    with pytest.warns(PhotoWarning, match="no patch of 2x2 pixels is fully known in photo"):
        Inpaint(photo, "lines").requests(model, seeds=[0])


def test_tasks_can_be_configured_without_their_photos():
    tasks = [Inpaint("gone.png", Half("top")), Outpaint("gone.png", left=2), Texture("gone.png"), Generate("8x8")]
    for task in [*tasks, Autoregress(Spiral(True), image="gone.png", mask="gone_mask.png")]:
        described = object_config.describe(task)
        assert object_config.describe(object_config.build(described)) == described


def test_a_checkpoint_does_not_store_the_task(photo, tmp_path):
    model = AsyncDiffusion(small_dit(3, 3), image_size=8, predict=PredictSettings(Inpaint(photo)))
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    assert str(tmp_path) not in str(checkpoint["recipe"])
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert AsyncDiffusion.load_from_checkpoint(tmp_path / "last.ckpt").predict.task is None


@pytest.mark.parametrize("file", LAYERS, ids=lambda f: f.stem)
def test_a_layer_names_every_argument(file):
    described = yaml.safe_load(file.read_text())["model"]["predict"]["task"]
    kind = find_class(described["class_path"])
    assert set(described["init_args"]) == set(inspect.signature(kind).parameters)
    assert kind(**described["init_args"]).name == file.stem


def test_every_task_has_a_layer():
    assert [f.stem for f in LAYERS] == ["autoregress", "edit", "generate", "inpaint", "outpaint", "texture"]


# The contact sheet


def test_a_folder_with_images_is_not_reused(tmp_path):
    assert choose_output_folder(tmp_path / "a", explicit=True) == tmp_path / "a"
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    assert choose_output_folder(tmp_path / "a", explicit=True) == tmp_path / "a"  # still empty
    (tmp_path / "a" / "x.png").touch()
    assert choose_output_folder(tmp_path / "a", explicit=False) == tmp_path / "a-2"
    (tmp_path / "a-2").mkdir()
    (tmp_path / "a-2" / "x.gif").touch()
    assert choose_output_folder(tmp_path / "a", explicit=False) == tmp_path / "a-3"
    with hold(tmp_path / "a-3", "being written"):  # by a process that has not finished its first images
        assert choose_output_folder(tmp_path / "a", explicit=False) == tmp_path / "a-4"
    with pytest.raises(ValueError, match="output folder .* already contains images"):
        choose_output_folder(tmp_path / "a", explicit=True)
    with pytest.raises(ValueError, match="output must be a folder, got the existing file"):
        choose_output_folder(tmp_path / "a" / "x.png", explicit=True)


def test_a_sheet_shows_photos_next_to_their_results(tmp_path):
    image, known = torch.zeros(1, 8, 8), torch.ones(8, 8, dtype=torch.bool)
    known[:4] = False
    requests = [Request(f"{p}{s}", s, None, (8, 8), Photo(p, image, known)) for p in "ab" for s in (0, 1)]
    written = write_images(torch.ones(4, 1, 8, 8), requests, tmp_path)
    sheets = []
    for known_pixels in (written, {"a0": written["a0"]}, None):  # the others are read from their files
        assert write_sheet(requests, tmp_path, known_pixels) == tmp_path / SHEET
        sheets.append((tmp_path / SHEET).read_bytes())
    assert sheets[0] == sheets[1] == sheets[2]
    page = pixels_of(tmp_path / SHEET)
    # Two blocks of three tiles: 12 times 8 pixels each, 4 around and between, 12 between the blocks.
    assert page.shape == (3, 96 + 2 * 4, 2 * (3 * 96 + 2 * 4) + 12 + 2 * 4)
    for left in (4, 4 + 3 * 96 + 2 * 4 + 12):
        assert tuple(page[:, 10, left].tolist()) == UNKNOWN_COLOR
        assert (page[:, 90, left : left + 96] == 128).all()
        assert (page[:, 10, left + 100 : left + 196] == 255).all()


def test_a_single_generated_image_gets_no_sheet(tmp_path):
    assert write_sheet([Request("a", 0, None, (8, 8))], tmp_path) is None


def test_tiles_of_several_sizes_fit_on_a_sheet():
    wide, high = torch.zeros(3, 4, 100, dtype=torch.uint8), torch.ones(3, 50, 20, dtype=torch.uint8)
    page = make_sheet([[wide, high]])
    assert page.shape == (3, 50 + 8, 204 + 8)
    assert torch.equal(page[:, 4:8, 4:104], wide)
    assert torch.equal(page[:, 4:54, 108:128], high)
    rest = page.clone()
    rest[:, 4:8, 4:104] = rest[:, 4:54, 108:128] = 255
    assert (rest == 255).all()
    assert make_sheet([[high]]).shape == (3, 2 * 50 + 8, 2 * 20 + 8)  # enlarged to 96 pixels or more


def test_the_sheet_shows_the_photo_at_its_position():
    image, known = -torch.ones(3, 2, 2), torch.ones(2, 2, dtype=torch.bool)
    tile = known_tile(Photo("a", image, known, place=(2, 1)), (4, 6))
    assert (tile == 0).all(0).nonzero().tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]


def test_the_british_spelling_of_an_order_is_still_read():
    assert order_by_name("centre_out") is order_by_name("center_out")
    assert isinstance(order_by_name("center_out"), CenterOut)
