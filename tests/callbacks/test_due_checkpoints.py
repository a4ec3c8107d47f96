"""The file of every checkpoint that is due exists when the step is over, whatever the intervals of all else."""

import itertools
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import quiet_trainer

from asyncdiff.callbacks import DueCheckpoints, MovedRun, ResumeLogging
from asyncdiff.callbacks.graceful_shutdown import save_last_checkpoint
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from datamodules import Digits

# Of ModelCheckpoint, about the folder of a resumed run.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")
DIGITS = Digits(batch_size=8, eval_batch_size=8)
DIGITS.setup("fit")


class Line(LightningModule):
    """A line through the pixels' mean, whose weights tell which batches it has seen."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.line.weight)
        torch.nn.init.zeros_(self.line.bias)

    def training_step(self, batch, batch_idx):
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def _loss(self, batch):
        x = batch["image"].mean((1, 2, 3))[:, None]
        return (self.line(x) - batch["label"][:, None]).square().mean()


class Watch(Callback):
    """Lists after each step, with its validation and its epoch's end, the checkpoints on disk with their steps."""

    def __init__(self, folder):
        self.folder, self.after, self.validations = folder, {}, []

    def look(self, trainer):
        files = {file.name: torch.load(file, weights_only=True)["global_step"] for file in self.folder.glob("*.ckpt")}
        self.after[trainer.global_step] = files

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.look(trainer)

    def on_validation_end(self, trainer, module):
        self.validations.append(trainer.global_step)


class Writes(AtomicCheckpointIO):
    """Records the steps and names of the checkpoints that are written, and how many validations came before."""

    def __init__(self, watch):
        super().__init__()
        self.watch, self.written = watch, []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.written.append((checkpoint["global_step"], Path(path).name, len(self.watch.validations)))
        super().save_checkpoint(checkpoint, path, storage_options)


def fit(folder, *, epoch, steps, resume=None, validation=None, check_epochs=None, accumulate=1, extra=(), **saving):
    """Train on epochs of `epoch` batches, with a validation every `validation` batches or `check_epochs` epochs."""
    options = {"filename": "{step}", "save_top_k": -1, "monitor": "step", "mode": "max", **saving}
    checkpointer, watch = ModelCheckpoint(folder / "checkpoints", **options), Watch(folder / "checkpoints")
    trainer = quiet_trainer(
        folder,
        callbacks=[watch, ResumeLogging(), MovedRun(), DueCheckpoints(), checkpointer, *extra],
        plugins=[writes := Writes(watch)],
        enable_checkpointing=True,
        max_steps=steps,
        limit_train_batches=epoch,
        limit_val_batches=0 if validation is None and check_epochs is None else 1,
        val_check_interval=validation or (1000 if check_epochs is None else 1.0),
        check_val_every_n_epoch=check_epochs,
        accumulate_grad_batches=accumulate,
    )
    module = Line()
    trainer.fit(module, DIGITS, ckpt_path=resume)
    watch.look(trainer)
    return watch, writes.written, module.state_dict()


def due(saving, last):
    """Steps at which a checkpoint is due."""
    return {step: f"step={step}.ckpt" for step in range(saving, last + 1, saving)}


def check_due(run, saving, steps, case):
    """Compare the files after each step with those that are due."""
    watch, written, _ = run
    assert list(watch.after) == list(range(steps + 1)), case
    for step, files in watch.after.items():
        expected = {name: s for s, name in due(saving, step).items()}
        newest = max(due(saving, step), default=None) if step < steps else steps  # the last step is always saved
        assert files == expected | ({"last.ckpt": newest} if newest else {}), (case, step)
    assert len(written) == len({(step, name) for step, name, _ in written}), case


INTERVALS = list(itertools.product((1, 2, 3), (None, 1, 2, 4, 5)))
METRICS = ["step", "val/loss", "train/loss", None]


@pytest.mark.parametrize("monitor", METRICS)
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_every_due_step_is_saved(tmp_path, epoch, monitor):
    """A metric of a validation, too, which is not there before the first one."""
    for saving, validation in INTERVALS:
        options = {"epoch": epoch, "validation": validation, "every_n_train_steps": saving, "save_last": True}
        run = fit(tmp_path / f"{saving} {validation}", steps=6, monitor=monitor, **options)
        check_due(run, saving, 6, options)


@pytest.mark.slow
@pytest.mark.parametrize("monitor", METRICS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_due_step_is_saved_at_more_ratios(tmp_path, monitor, accumulate):
    for epoch, saving, validation in itertools.product((2, 4, 5, 7), (2, 3, 4, 6), (None, 2, 3, 7, 12)):
        options = {"epoch": epoch, "validation": validation, "every_n_train_steps": saving, "save_last": "link"}
        folder = tmp_path / f"{epoch} {saving} {validation}"
        check_due(fit(folder, steps=8, monitor=monitor, accumulate=accumulate, **options), saving, 8, options)


@pytest.mark.parametrize("monitor", METRICS)
@pytest.mark.parametrize("check_epochs", [1, 2])
def test_every_due_step_is_saved_with_validations_of_epochs(tmp_path, check_epochs, monitor):
    for epoch, saving, at_epoch_end in itertools.product((1, 3), (1, 2, 3), (None, False, True)):
        options = {"epoch": epoch, "every_n_train_steps": saving, "save_on_train_epoch_end": at_epoch_end}
        folder = tmp_path / f"{epoch} {saving} {at_epoch_end}"
        run = fit(folder, steps=6, check_epochs=check_epochs, monitor=monitor, save_last=True, **options)
        check_due(run, saving, 6, options)


@pytest.mark.parametrize("monitor", ["step", "val/loss"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("epoch", [1, 3])
def test_every_checkpoint_resumes_into_the_validation_that_was_to_follow(tmp_path, epoch, accumulate, monitor):
    """Weights, files, and the steps of validations and checkpoints are those of the uninterrupted run."""
    for saving, validation in ((1, 1), (1, 5), (3, 2), (3, None), (2, 4)):
        case = {"epoch": epoch, "validation": validation, "every_n_train_steps": saving, "accumulate": accumulate}
        case |= {"save_last": True, "monitor": monitor, "steps": 5}
        whole = tmp_path / f"{saving} {validation}"
        watch, written, weights = fit(whole, **case)
        for step, name in due(saving, 4).items():
            run = shutil.copytree(whole, tmp_path / f"{saving} {validation} {step}")
            for later in set(due(saving, 5).values()) - set(due(saving, step).values()):
                (run / "checkpoints" / later).unlink()
            again, written_again, weights_again = fit(run, resume=run / "checkpoints" / name, **case)
            assert all(torch.equal(weights[key], weights_again[key]) for key in weights), (case, step)
            assert again.after[5] == watch.after[5], (case, step)
            before = next(validations for s, n, validations in written if n == name)
            assert again.validations == watch.validations[before:], (case, step)
            later = [(s, n, validations - before) for s, n, validations in written if s > step]
            assert written_again == later, (case, step)


@pytest.mark.parametrize("validation", [None, 2, 3, 5])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_save_last_alone_saves_every_epoch(tmp_path, epoch, validation):
    """The default interval of ModelCheckpoint is an epoch; validations add checkpoints."""
    options = {"monitor": None, "save_top_k": 1, "mode": "min", "save_last": True, "filename": None}
    watch, _, _ = fit(tmp_path, steps=6, epoch=epoch, validation=validation, **options)
    for step in range(6):
        saved = [s for s in range(1, step + 1) if s % epoch == 0 or (validation and s % validation == 0)]
        assert watch.after[step].get("last.ckpt") == max(saved, default=None)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_time_interval_that_has_passed_is_saved(tmp_path, epoch):
    for validation in (None, 1, 2, 4):
        options = {"train_time_interval": timedelta(0), "save_last": True, "validation": validation}
        check_due(fit(tmp_path / str(validation), steps=5, epoch=epoch, **options), 1, 5, options)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_newest_checkpoint_without_a_metric_is_kept(tmp_path, mode):
    """Before the first validation; afterwards, measured ones are better, and the last of all is last.ckpt."""
    options = {"epoch": 2, "validation": 5, "every_n_train_steps": 1, "monitor": "val/loss", "save_top_k": 1}
    watch, _, _ = fit(tmp_path, steps=6, mode=mode, **options)
    assert [set(watch.after[step].values()) for step in range(6)] == [set(), {1}, {2}, {3}, {4}, {5}]
    assert watch.validations == [5]


def test_a_resumed_run_knows_the_metric_of_the_last_validation(tmp_path):
    """It ranks checkpoints as the uninterrupted run does."""
    options = {"epoch": 10, "validation": 2, "monitor": "val/loss", "mode": "min", "every_n_train_steps": 3}
    options |= {"steps": 9, "filename": "{step}-{val/loss:.6f}", "auto_insert_metric_name": False}
    whole, _, _ = fit(tmp_path / "whole", **options)
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (third,) = run.glob("checkpoints/3-*")
    for file in {*run.glob("checkpoints/*")} - {third}:
        file.unlink()
    again, _, _ = fit(run, resume=third, **{**options, "validation": 100})  # no validation before the next checkpoint
    score = third.stem.partition("-")[2]
    assert {f"6-{score}.ckpt", f"9-{score}.ckpt"} <= again.after[9].keys()
    assert [name.partition("-")[0] for name in sorted(whole.after[9])] == ["3", "6", "9"]


class SaveLast(Callback):
    """Saves last.ckpt after every step, as a signal does."""

    after_checkpoints = 2

    def on_train_batch_end(self, trainer, *_):
        save_last_checkpoint(trainer)


@pytest.mark.parametrize("save_last", [True, "link"])
def test_a_step_with_a_checkpoint_is_not_saved_again_when_a_signal_stops_the_run(tmp_path, save_last):
    _, written, _ = fit(
        tmp_path, steps=5, epoch=2, validation=4, every_n_train_steps=2, save_last=save_last, extra=[SaveLast()]
    )
    assert len(written) == len({(step, name) for step, name, _ in written})
    assert {step for step, name, _ in written if name != "last.ckpt"} == {2, 4}
    assert {step for step, name, _ in written if name == "last.ckpt"} >= {1, 3, 5}
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
