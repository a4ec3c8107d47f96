"""A run that the page draws with: a small network that is awake, for 8x8 colour images in patches of 2."""

import torch
from conftest import awaken
from lightning.pytorch import Trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.networks.dit import DiT
from asyncdiff.sampling import Sampler


def small_run(folder):
    """Its directory, with a checkpoint."""
    torch.manual_seed(0)
    network = awaken(DiT(channels=3, patch_size=2, dim=32, depth=1, heads=2, classes=3))
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", logger=False)
    trainer.strategy.connect(AsyncDiffusion(network, sampler=Sampler(steps=4), image_size=8))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return folder
