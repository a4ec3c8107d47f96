"""Sums of errors by level stay on the device, also those of a checkpoint."""

from unittest import mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pretend_gpu.marks import on_gpu
from pretend_gpu.pretended_cuda import pretended_cuda

from asyncdiff.callbacks import LossByLevel


@pytest.mark.parametrize("saved_by", [1, 2])  # processes
def test_a_checkpoint_before_the_first_step_gathers_sums_of_the_gpu(saved_by):
    saved, module = torch.arange(4.0 * saved_by).reshape(saved_by, 2, 2), LightningModule()
    trainer = mock.Mock(spec=Trainer, world_size=2, global_rank=0, strategy=mock.Mock())
    with pretended_cuda() as watch:
        trainer.strategy.root_device = torch.device("cuda", 0)
        trainer.strategy.all_gather = lambda sums: torch.stack([sums, sums]) if on_gpu(sums) else pytest.fail("CPU")
        callback, checkpoint = LossByLevel(bins=2), {"level_loss": {"2": saved}}
        callback.on_load_checkpoint(trainer, module, checkpoint)
        callback.on_save_checkpoint(trainer, module, checkpoint)
    assert not watch.mixed
    assert torch.equal(checkpoint["level_loss"]["2"][0], saved.sum(0) if saved_by == 1 else saved[0])
