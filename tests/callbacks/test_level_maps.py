"""Figure of the level maps that a run trains on."""

from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from small_runs import FULL_RATE, quiet_trainer, small_dit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import LevelMaps
from asyncdiff.noise.level_samplers import SumBeta
from datamodules import Digits


def trained(folder, callbacks):
    module = AsyncDiffusion(small_dit(), SumBeta(), image_size=8, optimizer=FULL_RATE)
    logger = TensorBoardLogger(folder, name="", version="")
    trainer = quiet_trainer(folder, max_steps=2, logger=logger, callbacks=callbacks)
    trainer.fit(module, datamodule=Digits(batch_size=32))
    return module


def test_the_figure_is_drawn_once_and_training_does_not_change(tmp_path):
    watched = trained(tmp_path / "a", [LevelMaps(images=64)])
    alone = trained(tmp_path / "b", [])
    for a, b in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)
    events = EventAccumulator(str(tmp_path / "a")).Reload()
    (drawn,) = events.Images("images/levels")
    with Image.open(tmp_path / "a" / "images" / "levels.png") as figure:
        assert drawn.step == 0
        assert figure.width / figure.height == pytest.approx(drawn.width / drawn.height, rel=0.01)


def test_only_the_first_process_draws(tmp_path):
    trainer = Mock(spec=Trainer, is_global_zero=False, default_root_dir=tmp_path)
    LevelMaps().on_train_start(trainer, Mock(spec=AsyncDiffusion))
    assert not list(tmp_path.iterdir())
