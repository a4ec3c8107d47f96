"""Progress bar of a run: all steps, the start of a resumed run, and lines printed above it."""

import io
from contextlib import redirect_stderr

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
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


def fit(folder, bar, ckpt_path=None, **bounds):
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True)
    shown = {"enable_progress_bar": True, "enable_checkpointing": True}
    trainer = quiet_trainer(folder, callbacks=[bar, checkpoint], limit_train_batches=3, **shown, **bounds)
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
