"""A run on files of which some are damaged: it trains, prints their number and lists them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from small_runs import quiet_trainer
from torch import nn

from datamodules import ImageFolder

FILES, DAMAGED, HELD_OUT = 200, 10, 20


class Counting(LightningModule):
    """Records the indices of its training images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: set[int] = set()

    def training_step(self, batch, batch_idx):
        assert torch.isfinite(batch["image"]).all()
        assert len(batch["image"]) == 20
        self.seen |= set(batch["index"].tolist())
        return self.layer(batch["image"].mean(dim=(2, 3))[:, :1]).mean()

    def validation_step(self, batch, batch_idx):
        assert torch.isfinite(batch["image"]).all()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def write(root: Path) -> list[str]:
    """Write the files; return the names of the damaged ones, which are empty, truncated or text, in turn."""
    noise = np.random.default_rng(0)
    names = [f"train/{i:04d}.jpg" for i in range(FILES)] + [f"val/{i:04d}.jpg" for i in range(HELD_OUT)]
    for part in ("train", "val"):
        (root / part).mkdir()
    for name in names:
        Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / name)
    damaged = [*noise.choice(names[:FILES], DAMAGED, replace=False).tolist(), names[FILES + 3]]
    for at, name in enumerate(damaged):
        full = (root / name).read_bytes()
        (root / name).write_bytes([b"", full[: len(full) // 3], b"a note, and no image"][at % 3])
    return damaged


@pytest.mark.filterwarnings("ignore:cannot read")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_with_damaged_files_trains_and_reports_their_number(tmp_path, caplog, workers):
    root = tmp_path / "images"
    root.mkdir()
    damaged = write(root)
    data = ImageFolder(str(root), 8, batch_size=20, workers=workers, horizontal_flip=False)
    model = Counting()
    trainer = quiet_trainer(tmp_path / "run", max_epochs=1, limit_val_batches=1.0)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        trainer.fit(model, datamodule=data)
    assert trainer.global_step == FILES // 20
    assert len(model.seen) == FILES - DAMAGED
    messages = [r.message for r in caplog.records if "could not be read" in r.message]
    list_file = tmp_path / "run" / "unreadable.txt"
    assert messages == [
        f"10 of 200 train images could not be read and were left out: {list_file}",
        f"1 of 20 val images could not be read and were left out: {list_file}",
    ]
    listed = [line.split("\t")[1].removeprefix(f"{root}/") for line in list_file.read_text().splitlines()]
    assert sorted(listed) == sorted(damaged)


def test_nothing_is_written_if_all_images_are_readable(tmp_path):
    for i in range(30):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    data = ImageFolder(str(tmp_path), 8, batch_size=20, held_out=0.1)
    run = tmp_path / "run"
    quiet_trainer(run, max_steps=1).fit(Counting(), datamodule=data)
    assert not (run / "unreadable.txt").exists()
