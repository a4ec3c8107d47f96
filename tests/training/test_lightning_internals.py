"""Private attributes of Lightning mean what asyncdiff/training/lightning_internals.py says."""

import inspect
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from small_runs import quiet_trainer, small_dit

import asyncdiff
from asyncdiff import AsyncDiffusion
from asyncdiff.training import lightning_internals as internals
from datamodules import Digits


class Recorded(CSVLogger):
    def __init__(self, folder):
        super().__init__(folder)
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))


class Watch(Callback):
    """Looks at the trainer at the end of every step, and validates once more at the start of the fourth."""

    def __init__(self):
        self.pending, self.due = {}, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3:
            internals.run_validation(trainer, step=77, epoch=5)
            assert trainer.training
            assert (internals.logged_step(trainer), trainer.current_epoch) == (3, 0)

    def on_train_batch_end(self, trainer, module, *_):
        assert internals.attached_trainer(module) is trainer
        assert internals.logged_step(trainer) == trainer.global_step - 1
        self.pending[internals.logged_step(trainer)] = internals.pending_scalars(trainer)
        if internals.validation_is_due(trainer):
            self.due.append(trainer.global_step)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    watch, logger = Watch(), Recorded(folder)
    validating = {"limit_val_batches": 1, "val_check_interval": 2}
    trainer = quiet_trainer(folder, callbacks=[watch], logger=logger, max_steps=6, log_every_n_steps=3, **validating)
    trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=16))
    return watch, logger.logged


def test_pending_scalars_are_those_that_are_logged(watched):
    watch, logged = watched
    training = {step: metrics for step, metrics in logged if "train/loss" in metrics}
    assert list(training) == [2, 5]
    for step, found in watch.pending.items():
        assert found | ({"epoch": 0} if found else {}) == training.get(step, {})


def test_validations_are_due_when_lightning_validates(watched):
    watch, logged = watched
    assert watch.due == [2, 4, 6]
    validations = [(step, metrics["epoch"]) for step, metrics in logged if "val/loss" in metrics]
    assert validations == [(1, 0), (77, 5), (3, 0), (5, 0)]


def test_no_step_asks_for_sigterm_unless_told_to(tmp_path):
    trainer = quiet_trainer(tmp_path)
    loop = trainer.fit_loop.epoch_loop
    question = type(loop)._broadcast_sigterm_tensor  # what every step of several processes calls
    internals.ask_for_sigterm(trainer, ask=False)
    with mock.patch.object(torch, "tensor", side_effect=AssertionError("asked")):
        loop._broadcast_sigterm_tensor()
    internals.ask_for_sigterm(trainer, ask=True)
    assert loop._broadcast_sigterm_tensor.__func__ is question
    assert "_broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)


@pytest.mark.parametrize(("given", "expected"), [({}, True), ({"gradient_as_bucket_view": False}, False)])
def test_gradients_of_ddp_are_views_of_its_buckets(given, expected, tmp_path):
    trainer, module = quiet_trainer(tmp_path, strategy=DDPStrategy(**given)), torch.nn.Linear(1, 1)
    internals.keep_gradients_in_buckets(trainer)
    with mock.patch("lightning.pytorch.strategies.ddp.DistributedDataParallel") as wrapped:
        trainer.strategy._setup_model(module)
    assert wrapped.call_args.kwargs["gradient_as_bucket_view"] is expected


def test_ddp_does_not_move_inputs_but_barriers_know_the_gpu(tmp_path):
    trainer = quiet_trainer(tmp_path, strategy=DDPStrategy())
    strategy = trainer.strategy
    with mock.patch.object(DDPStrategy, "root_device", torch.device("cuda", 3)):
        internals.leave_inputs_of_ddp(trainer)
        with mock.patch("lightning.pytorch.strategies.ddp.DistributedDataParallel") as wrapped:
            wrapped.return_value = module = torch.nn.Linear(1, 1)
            assert strategy._setup_model(module) is module
        assert wrapped.call_args.kwargs["device_ids"] is None
        assert strategy.determine_ddp_device_ids() == [3]


class TellSaved(Callback):
    """Tells a ModelCheckpoint that a step has been saved."""

    def __init__(self, saving, step):
        self.saving, self.step = saving, step

    def on_train_batch_end(self, trainer, *_):
        assert internals.saved_step(self.saving) == trainer.global_step - 1
        if trainer.global_step == self.step:
            internals.set_saved_step(self.saving, self.step)


def test_a_saved_step_is_not_saved_again(tmp_path):
    saving = ModelCheckpoint(tmp_path / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(tmp_path, callbacks=[TellSaved(saving, 2), saving], enable_checkpointing=True, max_steps=3)
    trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=16))
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == {"step=1.ckpt", "step=3.ckpt"}


def test_no_other_file_names_private_attributes_of_lightning():
    root = Path(asyncdiff.__file__).parent
    text = {file: file.read_text() for file in root.rglob("*.py")}
    names = set(re.findall(r"\._([a-z]\w*)", text.pop(root / "training" / "lightning_internals.py")))
    assert len(names) == 16
    assert [file for file in text if re.search(rf"(?<!self)\._({'|'.join(names)})\b", text[file])] == []
