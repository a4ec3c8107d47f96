"""Sizes of a run are compared with the memory that there is, before anything is allocated."""

import pytest
from lightning.pytorch import LightningDataModule
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import DenoisingStrip, SampleGrid, periodic_image
from asyncdiff.training import argument_checks
from datamodules import Digits

IMAGE = 8 * 8 * 4  # bytes of one image


@pytest.fixture
def free(monkeypatch):
    """Function that sets the memory that checks believe to be available."""

    def set_free(count):
        for module in (argument_checks, periodic_image):
            monkeypatch.setattr(module, "available_memory", lambda: count)

    return set_free


def test_an_image_size_must_fit_into_memory(free):
    free(2**20)
    assert AsyncDiffusion(small_dit(), image_size=32).shape == (1, 32, 32)
    message = "image_size must fit into memory, got 512, which needs 4 MiB of the 1 MiB available: use at most 256"
    with pytest.raises(ValueError, match=message):
        AsyncDiffusion(small_dit(), image_size=512)


@pytest.mark.parametrize("size", [0, -8, 65_536, 1_048_576])
def test_an_image_size_is_that_of_an_image(size):
    with pytest.raises(ValueError, match=rf"image_size must lie in \[1, 65535\], got {size}: set the side length"):
        AsyncDiffusion(small_dit(), image_size=size)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_a_batch_must_fit_into_memory(name, free):
    model = AsyncDiffusion(small_dit(), image_size=8).model
    data = Digits(batch_size=10)
    free(100 * IMAGE)
    argument_checks.check_batches(model, data)
    setattr(data, name, 10**12)
    message = f"data.{name} must fit into memory, got 1000000000000, which needs [0-9.]+ KiB of .*: use at most 100"
    with pytest.raises(ValueError, match=message):
        argument_checks.check_batches(model, data)
    free(2000 * IMAGE)  # no batch has more images than there are
    argument_checks.check_batches(model, data)


def test_data_of_any_kind_is_accepted():
    own = LightningDataModule()
    own.batch_size, own.dataset = 10, [1, 2, 3]  # attributes that many data modules have
    for data in (None, own):
        argument_checks.check_batches(AsyncDiffusion(small_dit(), image_size=8).model, data)


@pytest.mark.parametrize("kind", [SampleGrid, DenoisingStrip])
def test_a_grid_of_pictures_must_fit_into_memory(kind, free, tmp_path):
    free(10 * 3 * 64 * 64 * 4)  # small images are enlarged to 64 pixels
    trainer, module = quiet_trainer(tmp_path), AsyncDiffusion(small_dit(), image_size=8)
    kind(count=10).on_fit_start(trainer, module)
    with pytest.raises(ValueError, match=f"{kind.__name__}: count must fit into memory, got 11, .*: use at most 10"):
        kind(count=11).on_fit_start(trainer, module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295, got 4294967296"),
        ({"level_values": 2**16 + 1}, r"level_values must be 0 \(continuous\) or lie in \[2, 65536\], got 65537"),
        ({"label_dropout": float("nan")}, r"label_dropout must lie in \[0, 1\], got nan"),
        ({"uncertainty_weight": float("inf")}, "uncertainty_weight must be finite, got inf"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AsyncDiffusion(small_dit(), image_size=8, **arguments)


def test_a_compiled_network_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    AsyncDiffusion(small_dit(), image_size=8).configure_model()
    compiled = AsyncDiffusion(small_dit(), image_size=8, compiled=True)
    with pytest.raises(ValueError, match=r"model.compiled needs a C\+\+ compiler, found none: install g\+\+, or set"):
        compiled.configure_model()
    monkeypatch.setenv("CXX", "/opt/clang++")
    compiled.configure_model()
