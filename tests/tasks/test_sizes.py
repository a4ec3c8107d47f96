"""Sizes are compared with memory before anything is allocated, and refused with the largest that fits."""

import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import small_dit

from asyncdiff import memory
from asyncdiff.checks import MAX_IMAGES, MAX_SEEDS, MAX_SIDE, MAX_STEPS
from asyncdiff.cli.commands.shared.options import parse_grid, parse_integers
from asyncdiff.denoising import Denoiser
from asyncdiff.evaluation.figures import sampling_gif
from asyncdiff.evaluation.figures.level_statistics import compute_level_statistics
from asyncdiff.model import DiffusionModel
from asyncdiff.noise import AlongPath, AsyncPatch, RectifiedFlow, Shared
from asyncdiff.sampling import Autoregressive, Sampler, engine
from asyncdiff.tasks import Generate, Inpaint, Outpaint, Request, Texture, contact_sheet
from asyncdiff.tasks.arguments import BYTES_PER_VALUE, parse_size
from asyncdiff.tasks.batch_memory import check_batches
from asyncdiff.tasks.contact_sheet import keep_for_sheet, write_images, write_sheet
from asyncdiff.tasks.drawing_cost import EvaluationCost, Measurement
from asyncdiff.tasks.photo_inputs import _unique_names
from asyncdiff.tasks.photos import read_photo

AVAILABLE = 2**20 * BYTES_PER_VALUE  # an image of 1024x1024 with one channel


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: AVAILABLE)
    for module in ("asyncdiff.tasks.arguments", "asyncdiff.tasks.photo_inputs", "asyncdiff.sampling.engine", LEVELS):
        monkeypatch.setattr(f"{module}.available_memory", lambda: AVAILABLE)
    monkeypatch.setattr(engine, "SMALL", 0)


LEVELS = "asyncdiff.evaluation.figures.level_statistics"


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return DiffusionModel(Denoiser(small_dit(), RectifiedFlow()).eval(), Sampler(steps=1), 8)


@pytest.mark.parametrize("text", ["0-99999999999", "99999999999-199999999999", f"5,0-{MAX_SEEDS - 1}", "0-" + "9" * 30])
def test_long_ranges_are_refused_before_they_are_listed(text):
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"--seeds must be at most {MAX_SEEDS} integers, got [0-9]* in {text}"):
        parse_integers("--seeds", text)
    assert tracemalloc.get_traced_memory()[1] < 10**5
    tracemalloc.stop()


def test_ranges_up_to_the_bound_are_listed():
    assert parse_integers("--seeds", f"7-{MAX_SEEDS + 6}") == list(range(7, MAX_SEEDS + 7))


@pytest.mark.parametrize("text", ["9" * 5000, f"1x{'9' * 5000}", "٣x٣", "0x8", "8x", "", "8x8x8", "-8"])
def test_sizes_that_are_no_sizes_are_refused(text):
    with pytest.raises(ValueError, match="size must be HEIGHTxWIDTH in pixels"):
        parse_size("size", text)
    with pytest.raises(ValueError, match="--grid must be ROWSxCOLUMNS"):
        parse_grid("--grid", text)


def test_the_largest_size_that_is_named_fits():
    with pytest.raises(
        ValueError, match="size must fit into memory, got 2000x1000, which needs .*: at most 1024x1024 fit"
    ):
        parse_size("size", "2000x1000")
    assert parse_size("size", "1024x1024") == parse_size("size", "1024") == (1024, 1024)
    with pytest.raises(ValueError, match=f"size must have sides of at most {MAX_SIDE} pixels, got 8x65536"):
        parse_size("size", "8x65536")


def test_the_channels_of_the_model_count():
    color = DiffusionModel(Denoiser(small_dit(channels=3), RectifiedFlow()), Sampler(steps=1), 8)
    with pytest.raises(ValueError, match="size must fit into memory, got 1024x1024, .*: at most 591x591 fit"):
        Generate("1024x1024").requests(color, seeds=[0])
    assert len(Generate("584x584").requests(color, seeds=[0])) == 1


@pytest.mark.parametrize("sides", [{"top": 99999999}, {"left": 2000, "bottom": 1000}, {"right": 10**18}])
def test_outpainted_sides_are_refused_with_the_task(sides):
    with pytest.raises(ValueError, match="size of the result must (fit into memory|have sides of at most)"):
        Outpaint("photo.png", **sides)


def test_a_scaled_exemplar_is_refused_before_it_is_resized(model, tmp_path):
    file = tmp_path / "exemplar.png"
    Image.new("L", (16, 16)).save(file)
    for scale in (1e9, 1e300):
        with pytest.raises(ValueError, match=r"scale must lie in \[0, 1024"):
            Texture(str(file), size="16x16", scale=scale).requests(model, seeds=[0])


def test_numbers_of_images_are_bounded_before_they_are_listed(model):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"number of seeds must be at most {MAX_SEEDS}, got {10**12}"):
        Generate().requests(model, seeds=range(10**12))
    with pytest.raises(ValueError, match=f"number of seeds must be at most {MAX_IMAGES}, got {10**12}"):
        model.generate(seeds=range(10**12))
    assert time.process_time() - start < 1


def test_batches_and_results_are_compared_with_memory(model):
    images = AVAILABLE // (4 * 64)
    with pytest.raises(
        ValueError, match=f"seeds must fit into memory, got {images + 1} images, .*: {images} images of 1x8x8 fit"
    ):
        model.generate(seeds=range(images + 1))
    batch = engine.ImageBatch(list(range(images // 3 + 1)))
    with pytest.raises(ValueError, match=f"batch_size must fit into memory, .*: {images // 3} images of 1x8x8 fit"):
        next(engine.frames(model.denoiser, model.sampler, batch, (1, 8, 8)))
    with pytest.raises(
        ValueError,
        match=f"photos and seeds must fit .*, got 65 images, .*: {4 * 2**20 // 256**2} images of 1x256x256 fit",
    ):
        Generate("256x256").sample(model, seeds=range(65))


def test_batches_are_compared_with_the_memory_of_the_network(model, monkeypatch):
    """Here a network that takes 1000 bytes per pixel, on top of 16; the values that are named fit, the next do not."""
    cost = EvaluationCost([Measurement(64, 0.1, 1, 64e3), Measurement(256, 0.4, 4, 256e3)])
    monkeypatch.setattr("asyncdiff.tasks.measured_cost.measure_network", lambda model, **options: cost)
    monkeypatch.setattr("asyncdiff.tasks.batch_memory.available_on", lambda device: AVAILABLE)
    pixels = AVAILABLE // 1016
    side = int(pixels**0.5) // 2 * 2
    task = Generate(f"{side + 2}x{side + 2}")
    with pytest.raises(ValueError, match=f"size must fit into memory, got .*: at most {side}x{side} fit into a single"):
        check_batches(task, model, task.requests(model, seeds=[0]), 64)
    task = Generate(f"{side}x{side}")
    check_batches(task, model, task.requests(model, seeds=[0]), 64)
    task, count = Generate(), pixels // 64
    requests = task.requests(model, seeds=range(count + 1))
    with pytest.raises(ValueError, match=f"batch_size must fit .*, got {count + 1} images .*: use at most {count}$"):
        check_batches(task, model, requests, 1000)
    check_batches(task, model, requests, count)
    tiled = Texture(size=f"{side + 2}x{side + 2}")
    check_batches(tiled, model, tiled.requests(model, seeds=[0]), 64)


def test_a_sheet_has_a_bounded_size(tmp_path, monkeypatch):
    """3 * 64 * 64 / 1000 = 12.3 pixels become one: every 4th row and column is shown."""
    monkeypatch.setattr(contact_sheet, "MAX_SHEET_PIXELS", 1000)
    requests = [Request(str(seed), seed, None, (64, 64)) for seed in range(3)]
    images = (torch.arange(64) * 2 / 127.5 - 1).expand(3, 1, 64, 64)
    write_images(images, requests, tmp_path)
    sheet = write_sheet(requests, tmp_path)
    assert sheet is not None
    shown = [(torch.arange(0, 64, 4) * 2).byte().expand(3, 16, 16)] * 3
    assert torch.equal(read_photo(sheet, 3), contact_sheet.make_sheet([shown]))


def test_few_pixels_are_kept_for_a_sheet(monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_KEPT", 200)
    kept = {"a": torch.zeros(1, 8, 8, dtype=torch.uint8)}
    keep_for_sheet(kept, {name: torch.zeros(1, 8, 8, dtype=torch.uint8) for name in "bcdef"})
    assert list(kept) == ["a", "b", "c"]


def test_photos_are_compared_with_memory_before_they_are_read(model, tmp_path):
    for name in range(17):
        (tmp_path / f"{name}.png").write_bytes(b"not read")
    message = "image must fit into memory, got 17 photos, .*: at most 16 photos of 512x512 fit"
    with pytest.raises(ValueError, match=message):
        Inpaint(str(tmp_path), size="512x512").requests(model, seeds=[0])


def test_many_files_of_one_name_are_numbered_fast():
    files = [Path(str(folder), "a.png") for folder in range(2000)]
    start = time.process_time()
    assert _unique_names(files)[-1] == "a-2000"
    assert time.process_time() - start < 2


def test_steps_of_all_patches_are_bounded():
    sampler = Autoregressive(steps_per_patch=MAX_STEPS)
    assert sampler.num_steps((1, 1)) == MAX_STEPS
    with pytest.raises(ValueError, match=f"steps_per_patch must be at most {MAX_STEPS // 16}, got {MAX_STEPS}"):
        sampler.num_steps((4, 4))


def test_frames_of_a_gif_have_bounded_pixels(tmp_path, monkeypatch):
    """Six images of 64x64 next to their level maps have 49152 pixels: every third row and column is shown."""
    monkeypatch.setattr(sampling_gif, "MAX_PIXELS", 6000)
    monkeypatch.setattr(sampling_gif, "MIN_TILE", 1)
    movie = sampling_gif.SamplingGIF()
    movie.add(torch.zeros(6, 1, 64, 64, dtype=torch.uint8), torch.zeros(6, 4, 4))
    movie.save(tmp_path / "a.gif")
    side, gap = 22 + 2, sampling_gif.GAP
    assert Image.open(tmp_path / "a.gif").size == (2 * (2 * side + gap) + gap, 3 * (side + gap) + gap)


def test_animations_of_paths_are_compared_with_memory():
    sampler = AlongPath(AsyncPatch())
    with pytest.raises(
        ValueError, match="grid must fit into memory, got 200x200, which needs .*: 16x16 is the default"
    ):
        compute_level_statistics("a", sampler, (200, 200), images=1)
    assert compute_level_statistics("a", sampler, (80, 80), images=1).t.shape == (1, 80, 80)


def test_level_maps_are_compared_with_memory():
    with pytest.raises(
        ValueError, match="images must fit into memory, got 100000000 level maps, .* maps of 16x16 patches fit"
    ):
        compute_level_statistics("a", Shared(), (16, 16), images=10**8)
