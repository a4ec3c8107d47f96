"""Images that callbacks draw during a run: files, contents and TensorBoard."""

from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from small_runs import FULL_RATE, quiet_trainer, small_dit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, DenoisingStrip, InpaintingGrid, LossByLevel, SampleGrid, Throughput
from asyncdiff.callbacks.inpainting_grid import paint_unknown
from asyncdiff.callbacks.loss_by_level import sum_by_bin
from asyncdiff.callbacks.periodic_image import tile_images
from asyncdiff.callbacks.split_work import gather_rows, rank_indices
from asyncdiff.noise.masks import Half
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.tasks.contact_sheet import UNKNOWN_COLOR
from datamodules import Digits

CALLBACKS = {
    "samples": lambda: SampleGrid(count=6, columns=3, every_n_steps=2),
    "inpainting": lambda: InpaintingGrid(count=4, columns=2, every_n_steps=0),
    "denoising": lambda: DenoisingStrip(count=1, frames=4),
    "inpainting_strip": lambda: DenoisingStrip(count=1, frames=4, mask=Half(), name="inpainting_strip"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = AsyncDiffusion(small_dit(), sampler=Sampler(AsyncPatch(), steps=4), image_size=8, optimizer=FULL_RATE)
    callbacks = [EMA(0.9), LossByLevel(bins=4), Throughput(), *(make() for make in CALLBACKS.values())]
    logger = TensorBoardLogger(folder, name="", version="")
    trainer = quiet_trainer(folder, max_steps=4, log_every_n_steps=2, logger=logger, callbacks=callbacks)
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return trainer, module, folder


def test_every_figure_is_on_disk_and_in_tensorboard(run):
    _, _, folder = run
    events = EventAccumulator(str(folder)).Reload()
    assert {f"images/{name}" for name in CALLBACKS} <= set(events.Tags()["images"])
    for name in CALLBACKS:
        inner = Image.open(folder / "images" / f"{name}.png").convert("L").crop((3, 3, 65, 65))
        assert inner.getextrema()[0] < inner.getextrema()[1]  # the first tile is no plain color
    assert {p.name for p in (folder / "images").glob("samples_*")} == {"samples_0000002.png", "samples_0000004.png"}


def test_curves_are_logged(run):
    tags = set(EventAccumulator(str(run[2])).Reload().Tags()["scalars"])
    assert {"train/loss", "train/gradient_norm", "train/images_per_second"} <= tags
    assert any(tag.startswith("train/error_by_level/") for tag in tags)


def test_the_grid_is_the_same_every_time(run):
    trainer, module, _ = run
    grid = SampleGrid(count=4, columns=2)
    assert torch.equal(grid.draw(trainer, module), grid.draw(trainer, module))


def test_the_last_frame_of_an_inpainting_keeps_the_known_half(run):
    trainer, module, _ = run
    strip = DenoisingStrip(count=1, frames=4, mask=Half())
    frames = strip._sample_frames(trainer, module)
    truth = trainer.datamodule.dataset("val").images[0]
    assert torch.equal(frames[-1].x_t[0, :, :, :4], truth[:, :, :4])
    assert all((f.t[0, :, :2] == 0).all() for f in frames)


def test_unknown_pixels_have_one_color():
    image = torch.rand(1, 3, 8, 8)
    shown = paint_unknown(image, Half()(8, 8))
    assert torch.equal(shown[..., :4], image[..., :4])
    assert shown[0, :, 0, 7].tolist() == pytest.approx([value / 127.5 - 1 for value in UNKNOWN_COLOR])


def test_small_images_are_enlarged_by_integer_factors():
    image = torch.tensor([[-1.0, 1.0], [0.0, 0.5]]).reshape(1, 1, 2, 2)
    grid = tile_images(image.expand(2, 1, 2, 2), columns=1)
    assert grid.shape == (3, 2 * (64 + 2) + 2, 64 + 4)
    inner = grid[:, 2:66, 2:66]
    assert inner[0, ::32, ::32].flatten().tolist() == [0.0, 1.0, 0.5, 0.75]


def test_latents_cannot_be_drawn():
    with pytest.raises(ValueError, match="1 or 3 channels to be drawn, got 4"):
        tile_images(torch.zeros(1, 4, 8, 8), columns=1)


def test_errors_by_level_add_up():
    t = torch.rand(64, 4, 4)
    error = torch.rand(64, 4, 4)
    total, count = sum_by_bin(t, error, 8)
    assert count.sum() == t.numel()
    assert total.sum().item() == pytest.approx(error.sum().item(), rel=1e-5)
    third = (t >= 0.25) & (t < 0.375)
    assert total[2].item() == pytest.approx(error[third].sum().item(), rel=1e-5)
    assert sum_by_bin(torch.ones(1, 1, 1), torch.ones(1, 1, 1), 8)[1].tolist() == [0] * 7 + [1]
    error[0, 0, 0] = torch.nan  # of a step that is skipped
    rest, fewer = sum_by_bin(t, error, 8)
    assert rest.isfinite().all()
    assert (count - fewer).sum() == 1


def process(rank: int, world: int) -> Mock:
    return Mock(spec=Trainer, global_rank=rank, world_size=world)


@pytest.mark.parametrize(("count", "world"), [(7, 2), (1, 3), (12, 4), (5, 1)])
def test_ranks_have_equally_many_indices_and_cover_all(count, world):
    indices = [rank_indices(process(rank, world), count) for rank in range(world)]
    assert len({len(own) for own in indices}) == 1
    assert set().union(*indices) == set(range(count))


def test_rows_are_gathered_in_the_order_of_their_indices(monkeypatch):
    rows = torch.rand(5, 2)
    assert torch.equal(gather_rows(process(0, 1), rows, 5), rows)
    # The first process has rows 0, 2 and 4; the second has 1 and 3, and row 4 again.
    monkeypatch.setattr("asyncdiff.callbacks.split_work.gather_all_tensors", lambda own: [own, rows[[1, 3, 4]]])
    several = process(0, 2)
    several.strategy.root_device = torch.device("cpu")
    assert torch.equal(gather_rows(several, rows[::2], 5), rows)
