"""Small run for the page: a randomly initialized network for 8x8 color images in patches of 2x2."""

import torch
import yaml
from conftest import randomize_weights
from lightning.pytorch import Trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.networks.dit import DiT
from asyncdiff.sampling.samplers import Sampler

DIMENSIONS = {"channels": 3, "patch_size": 2, "dim": 32, "depth": 1, "heads": 2, "classes": 3}
CONFIG = {
    "model": {
        "network": {"class_path": "asyncdiff.networks.DiT", "init_args": DIMENSIONS},
        "sampler": {"class_path": "asyncdiff.sampling.Sampler", "init_args": {"steps": 4}},
        "image_size": 8,
    },
    "data": {"class_path": "datamodules.Digits"},
    "trainer": {
        "precision": "bf16-mixed",  # training only
        "logger": False,
        "callbacks": None,
    },
}


def small_run(folder):
    """Write a checkpoint and the config of a run into the folder, and return it."""
    torch.manual_seed(0)
    network = randomize_weights(DiT(**DIMENSIONS))
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", logger=False)
    trainer.strategy.connect(AsyncDiffusion(network, sampler=Sampler(steps=4), image_size=8))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder
