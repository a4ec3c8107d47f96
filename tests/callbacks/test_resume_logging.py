"""A resumed run logs every step once: events after its checkpoint are removed, what was pending is made up for."""

import shutil
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from faults.killing import read_curves, shown_steps
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from small_runs import quiet_trainer, small_dit
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import LossByLevel, ResumeLogging, SampleGrid
from asyncdiff.callbacks.graceful_shutdown import save_last_checkpoint
from asyncdiff.callbacks.resume_logging import cut_event_files
from asyncdiff.sampling import Sampler
from datamodules import Digits


def fit(folder, steps, resume=None, extra=(), logger=TensorBoardLogger, **options):
    saving = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=3, save_top_k=-1, save_last=True)
    trainer = quiet_trainer(
        folder,
        logger=logger(folder, name="", version=""),
        callbacks=[
            SampleGrid(1, every_n_steps=3),
            LossByLevel(),
            LearningRateMonitor(),
            ResumeLogging(),
            saving,
            *extra,
        ],
        enable_checkpointing=True,
        max_steps=steps,
        limit_val_batches=1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        **options,
    )
    model = AsyncDiffusion(small_dit(), sampler=Sampler(steps=2), image_size=8)
    trainer.fit(model, datamodule=Digits(batch_size=16), ckpt_path=resume and folder / "checkpoints" / resume)
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, 8)
    return folder


@pytest.mark.parametrize("clock", [86400, 3600, -3600, -86400])
def test_curves_of_a_resumed_run_equal_those_of_an_uninterrupted_one(whole, tmp_path, monkeypatch, clock):
    """At step 3 its checkpoint is written before the step is logged and validated; clocks may be set back."""
    run = shutil.copytree(whole, tmp_path / "run")
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + clock)
    fit(run, 8, resume="step=3.ckpt")
    assert len(list(run.glob("events*"))) == 2
    curves = read_curves(run)
    assert [step for step, _ in curves["train/loss"]] == list(range(8))
    assert [step for step, _ in curves["val/loss"]] == [2, 5]
    assert curves == read_curves(whole)
    assert shown_steps(run) == shown_steps(whole)
    monkeypatch.undo()
    fit(run, 8, resume="step=6-v1.ckpt")  # written by the resumed run
    assert read_curves(run) == curves
    assert shown_steps(run) == shown_steps(whole)


def served(folder):
    """The steps of the loss that the server of `tensorboard --logdir` sends, which reads files in a way of its own."""
    from tensorboard.context import RequestContext
    from tensorboard.data import server_ingester
    from tensorboard.util.grpc_util import ChannelCredsType

    server = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(),
        str(folder),
        reload_interval=0,
        channel_creds_type=ChannelCredsType.LOCAL,
        samples_per_plugin={},
    )
    server.start()
    read = server.data_provider.read_scalars
    curves = {}
    while not curves:  # loaded in the background
        curves = read(RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000)
    return [value.step for value in curves["."]["train/loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("clock", [0, -3600])
def test_tensorboard_shows_every_step_of_a_run_whose_clock_was_set_back(whole, tmp_path, monkeypatch, clock):
    run = shutil.copytree(whole, tmp_path / "run")
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + clock)
    fit(run, 8, resume="step=6.ckpt")
    monkeypatch.undo()
    assert served(run) == list(range(8))


class SaveInValidation(Callback):
    """Saves a checkpoint in the first validation."""

    def on_validation_end(self, trainer, module):
        if trainer.global_step < 2:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "middle.ckpt")


@pytest.mark.parametrize("accumulated", [2, 4])
def test_a_checkpoint_in_the_middle_of_accumulation_begins_its_step_again(tmp_path, accumulated):
    """The first validation, after three batches, is in the middle of the second or of the first step."""
    fit(tmp_path, 3, accumulate_grad_batches=accumulated, extra=[SaveInValidation()])
    before = read_curves(tmp_path)
    assert before["val/loss"][0][0] == 3 // accumulated
    fit(tmp_path, 3, accumulate_grad_batches=accumulated, resume="middle.ckpt")
    assert len(list(tmp_path.glob("events*"))) == 2
    assert read_curves(tmp_path) == before


class PendingScalars(Callback):
    """Records after every batch whether a checkpoint would contain pending scalars."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        (resume,) = (callback for callback in trainer.callbacks if isinstance(callback, ResumeLogging))
        self.seen.append(bool(resume.state_dict()["scalars"]))


def test_no_scalars_are_pending_while_batches_of_another_loader_are_accumulated(tmp_path):
    """The position of such a loader cannot be set back to the first batch of the step."""
    batch, pending = next(iter(Digits(batch_size=4).train_dataloader())), PendingScalars()
    callbacks = [ResumeLogging(), pending]
    trainer = quiet_trainer(
        tmp_path, callbacks=callbacks, max_steps=3, log_every_n_steps=1, accumulate_grad_batches=2, limit_val_batches=0
    )
    loader = DataLoader([batch] * 6, batch_size=None)
    trainer.fit(AsyncDiffusion(small_dit(), image_size=8), train_dataloaders=loader)
    assert pending.seen == [False, True] * 3


@pytest.mark.parametrize("clock", [0, 3600, -3600])
def test_events_of_a_checkpoint_without_sizes_are_hidden(whole, tmp_path, monkeypatch, clock):
    """Version 0.1 recorded the time at which a checkpoint was written."""
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + clock)
    run = shutil.copytree(whole, tmp_path / "run")
    path = run / "checkpoints" / "step=6.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["ResumeLogging"] = {
        "scalars": {},
        "validation_due": False,
        "epoch": 0,
        "step": 5,
        "moment": 1.0,
    }
    torch.save(checkpoint, path)
    fit(run, 8, resume=path.name)
    curves = shown_steps(run)
    assert curves["images/samples"] == [3, 6, 8]
    assert curves["train/loss"] == [0, 1, 2, 3, 4, 5, 6, 6, 7]  # the step after the checkpoint has its number


def test_the_last_step_is_saved(whole):
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert {file.name for file in (whole / "checkpoints").glob("*.ckpt")} == {"step=3.ckpt", "step=6.ckpt", "last.ckpt"}


def test_the_last_step_belongs_to_the_callback_with_save_last(tmp_path):
    """Lightning saves to its folder too; another one may keep the best checkpoints elsewhere."""
    best, last = ModelCheckpoint(tmp_path / "best"), ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    trainer = mock.Mock(spec=Trainer, callbacks=[best, last], global_step=3)
    path = save_last_checkpoint(trainer)
    assert path == tmp_path / "checkpoints" / "last.ckpt"
    assert (best.last_model_path, last.last_model_path) == ("", str(path))


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_last_step_is_saved_as_its_callback_saves(tmp_path, weights_only):
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=100, save_weights_only=weights_only)
    trainer = quiet_trainer(tmp_path, max_steps=1, enable_checkpointing=True, callbacks=[saving, ResumeLogging()])
    trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=32))
    assert ("optimizer_states" in torch.load(tmp_path / "last.ckpt", weights_only=True)) != weights_only


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_event_files_are_cut_or_renamed(tmp_path):
    """Nothing is deleted, since files without a recorded size may belong to another run."""
    recorded, other, later, own = (f"events.out.tfevents.{k}.host.1.0" for k in (9, 3, 1, 5))
    sizes = {recorded: 7, other: None, "events.out.tfevents.3.gone.0": 5}
    for name in (recorded, other, later, own):
        (tmp_path / name).write_bytes(b"0123456789")
    left = {recorded: b"0123456", other: b"0123456789", own: b"0123456789", "superseded.0.1.host.1.0": b"0123456789"}
    for _ in range(2):
        cut_event_files(tmp_path, sizes, keep={own})
        assert contents(tmp_path) == left
    (tmp_path / later).write_bytes(b"again")
    cut_event_files(tmp_path, {**sizes, recorded: 20}, keep={own})  # a power failure may have lost the end
    assert contents(tmp_path) == {**left, "superseded.1.1.host.1.0": b"again"}


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_a_copy_of_a_run_made_of_links_keeps_its_events(tmp_path, link):
    (run := tmp_path / "run").mkdir()
    original, copied = (folder / "events.out.tfevents.1.host.1.0" for folder in (tmp_path, run))
    original.write_bytes(b"0123456789")
    link(copied, original)
    cut_event_files(run, {copied.name: 7}, keep=set())
    assert (original.read_bytes(), contents(run)) == (b"0123456789", {copied.name: b"0123456"})


def test_a_checkpoint_knows_which_event_files_are_its_own(tmp_path):
    """Those of another run in the folder stay; its own are still known after a run with another logger."""
    other = tmp_path / "events.out.tfevents.1.other.7.0"
    other.write_bytes(b"before")
    fit(tmp_path, 3)
    (own,) = set(tmp_path.glob("events*")) - {other}
    written = own.read_bytes()
    fit(tmp_path, 4, resume="last.ckpt", logger=CSVLogger)
    other.write_bytes(b"before and after")
    own.write_bytes(written + b"lost")
    fit(tmp_path, 5, resume="last.ckpt")
    left = contents(tmp_path)
    assert left[other.name] == b"before and after"
    assert written.startswith(left[own.name])
    assert not list(tmp_path.glob("superseded*"))


def test_a_run_from_scratch_takes_over_a_folder(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("old", 1.0, 1)
    (file,) = tmp_path.glob("events*")
    file.rename(file.with_name("events.out.tfevents.1.elsewhere.7.0"))
    for take_over, kept in ((False, True), (True, False)):
        logger = TensorBoardLogger(tmp_path, name="", version="")
        trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[ResumeLogging(take_over)], max_steps=1)
        trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=16))
        assert ("old" in read_curves(tmp_path)) == kept
    assert (tmp_path / "superseded.0.1.elsewhere.7.0").exists()
