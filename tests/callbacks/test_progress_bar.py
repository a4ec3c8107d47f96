"""Progress bar of a run: all steps, the start of a resumed run, the loss, and lines printed above it."""

import io
from contextlib import redirect_stderr
from unittest import mock

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.logger_connector import result
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import progress_bar
from asyncdiff.callbacks.progress_bar import StepProgressBar, print_above_bar
from datamodules import Digits


class Watched(StepProgressBar):
    """Records (n, total, initial) after every batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *batch):
        super().on_train_batch_end(trainer, pl_module, *batch)
        bar = self.train_progress_bar
        self.seen.append((bar.n, bar.total, bar.initial))


def fit(folder, bar, ckpt_path=None, batches=3, **bounds):
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True)
    shown = {"enable_progress_bar": True, "enable_checkpointing": True}
    trainer = quiet_trainer(folder, callbacks=[bar, checkpoint], limit_train_batches=batches, **shown, **bounds)
    with redirect_stderr(io.StringIO()):
        trainer.fit(AsyncDiffusion(small_dit(classes=0), image_size=8), Digits(batch_size=8), ckpt_path=ckpt_path)
    return trainer


def test_the_bar_counts_steps_over_epochs_and_restarts(tmp_path):
    first, second = Watched(), Watched()
    fit(tmp_path, first, max_steps=5)
    assert first.seen == [(n, 5, 0) for n in (1, 2, 3, 4, 5)]
    fit(tmp_path, second, tmp_path / "checkpoints" / "last.ckpt", max_steps=8)
    assert [n for n, _, _ in second.seen] == [6, 7, 8]
    assert {(total, initial) for _, total, initial in second.seen} == {(8, 5)}


def test_accumulated_batches_are_one_step(tmp_path):
    bar = Watched()
    fit(tmp_path, bar, max_steps=2, accumulate_grad_batches=3)
    assert [n for n, _, _ in bar.seen] == [0, 0, 1, 1, 1, 2]


def test_runs_without_max_steps_show_lightnings_bar(tmp_path):
    bar = Watched()
    fit(tmp_path, bar, max_epochs=2, max_steps=-1)
    assert [seen[:2] for seen in bar.seen] == [(1, 3), (2, 3), (3, 3)] * 2


@pytest.mark.parametrize("shown", [True, False])
def test_lines_are_printed_if_there_is_a_bar(tmp_path, shown, capsys):
    bar = StepProgressBar(refresh_rate=int(shown))
    trainer = fit(tmp_path, bar, max_steps=1)
    capsys.readouterr()
    print_above_bar(trainer, "measuring: something")
    assert capsys.readouterr().err == ("measuring: something\n" if shown else "")


class Arriving:
    """Copy to the host that arrives when the test says so, as those from a GPU do some time later."""

    def __init__(self, x):
        self.arrived, self.value = False, x.clone()

    def read(self):
        assert self.arrived, "waited for the GPU"
        return self.value


def test_the_bar_shows_the_last_loss_that_has_arrived(monkeypatch):
    copies = []
    monkeypatch.setattr(progress_bar, "HostCopy", lambda x: copies.append(Arriving(x)) or copies[-1])
    bar, trainer = StepProgressBar(), mock.Mock(spec=Trainer, loggers=[], progress_bar_metrics={"own": 1.0})
    shown = []
    for step, arrived in enumerate([0, 0, 2, 3]):
        trainer.callback_metrics = {"train/loss": torch.tensor(float(step))}
        for copy in copies[:arrived]:
            copy.arrived = True
        shown.append(bar.get_metrics(trainer, LightningModule()))
    assert shown == [{"own": 1.0}, {"own": 1.0}, {"own": 1.0, "train/loss": 1.0}, {"own": 1.0, "train/loss": 2.0}]


class Drawn(Watched):
    """Bar that is drawn after so many seconds at the earliest; records what it shows."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.shown = seconds, []

    def init_train_tqdm(self):
        bar = super().init_train_tqdm()
        bar.mininterval = self.seconds
        return bar

    def get_metrics(self, trainer, pl_module):
        self.shown.append((trainer.global_step, super().get_metrics(trainer, pl_module)))
        return self.shown[-1][1]


@pytest.mark.parametrize(("seconds", "steps"), [(0, [1, 2, 3, 4, 5]), (1e9, [5])])
@pytest.mark.parametrize("bounds", [{"max_steps": 5}, {"max_steps": -1, "max_epochs": 1}])
def test_the_bar_is_drawn_by_time_and_after_the_last_step(tmp_path, seconds, steps, bounds):
    bar = Drawn(seconds)
    fit(tmp_path, bar, batches=5, **bounds)
    assert sorted({step for step, _ in bar.shown}) == steps
    assert all(shown["train/loss"] > 0 for _, shown in bar.shown)


def test_lightning_converts_no_loss_to_a_number(tmp_path, monkeypatch):
    converted = []
    found = result.convert_tensors_to_scalars
    monkeypatch.setattr(result, "convert_tensors_to_scalars", lambda value: converted.append(value) or found(value))
    fit(tmp_path, StepProgressBar(), max_steps=3, accumulate_grad_batches=2)
    assert converted == []
