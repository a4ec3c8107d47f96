"""Small runs that several test files need, each made once for all processes of a test run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch import Trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA
from asyncdiff.networks import DiT
from asyncdiff.sampling import DDIM, Sampler
from asyncdiff.training import OptimizerSettings
from datamodules import Digits

FULL_RATE = OptimizerSettings(warmup_steps=1)  # the full learning rate from the first step on


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """Return a folder that `make` fills once for all processes of the test run; nobody may write into it afterwards."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"shared-{name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def randomize_weights(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a random value: at initialization most of a DiT is switched off by zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def small_dit(channels: int = 1, classes: int = 10, seed: int = 0, **options: Any) -> torch.nn.Module:
    """Return a DiT for 8x8 images in 2x2 patches in which every weight is random."""
    torch.manual_seed(seed)
    sizes = {"patch_size": 2, "dim": 32, "depth": 1, "heads": 2, **options}
    return randomize_weights(DiT(channels=channels, classes=classes, **sizes), seed)


class Pixels(torch.nn.Module):
    """Coarse pixels of 8x8 grayscale images as features."""

    dim = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 2).flatten(1)


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """Return a trainer on the CPU that prints, logs, validates and saves nothing, unless the options ask for it."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    validation = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    return Trainer(**{"default_root_dir": folder, "accelerator": "cpu", **quiet, **validation, **options})


def save_untrained(folder: Path, model: AsyncDiffusion, config: dict[str, Any] | None = None) -> Path:
    """Write the checkpoint and configuration of an untrained model into a run directory, and return it."""
    trainer = quiet_trainer(folder)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def train_digits(folder: Path) -> None:
    """Train on the digits for two steps with EMA weights."""
    data = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32}}
    sampler = Sampler(solver=DDIM(0.25), steps=2)
    model = AsyncDiffusion(
        small_dit(), sampler=sampler, image_size=8, optimizer=OptimizerSettings(learning_rate=0.01, warmup_steps=0)
    )
    trainer = quiet_trainer(folder, max_steps=2, callbacks=[EMA(0.9)])
    trainer.fit(model, datamodule=Digits(**data["init_args"]))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "data": data}))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of two training steps on the digits with EMA weights; copy it before changing it."""
    return once(tmp_path_factory, "digits", train_digits)


@pytest.fixture(scope="session")
def color_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of an untrained network for 8x8 color images and three classes; copy it before changing it."""
    model = AsyncDiffusion(small_dit(3, 3), sampler=Sampler(steps=2), image_size=8)
    return once(tmp_path_factory, "color", lambda folder: save_untrained(folder, model))
