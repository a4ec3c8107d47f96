from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import Frechet, LossByLevel, SampleGrid, Throughput
from asyncdiff.callbacks.every_n_steps import EveryNSteps
from datamodules import Digits


def at(step: int) -> Mock:
    return Mock(spec=Trainer, global_step=step)


def test_schedule_is_due_once_per_step_and_not_at_the_start():
    schedule = EveryNSteps(2)
    schedule.start(at(4))
    assert [step for step in (4, 4, 5, 5, 6, 6, 7, 8) if schedule.is_due(at(step))] == [6, 8]


def test_interval_zero_is_never_due():
    schedule = EveryNSteps(0)
    assert not any(schedule.is_due(at(step)) for step in range(5))


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be at least 0, got -3"):
        EveryNSteps(-3)


class Pixels(torch.nn.Module):
    dim = 4

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


def test_callbacks_count_optimizer_steps_under_accumulation(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        SampleGrid, "draw", lambda self, t, m: calls.append(("draw", t.global_step)) or torch.zeros(3, 8, 8)
    )
    monkeypatch.setattr(Frechet, "_compute", lambda self, t, m: calls.append(("measure", t.global_step)))
    monkeypatch.setattr(LossByLevel, "_log", lambda self, t: calls.append(("levels", t.global_step)))
    callbacks = [LossByLevel(), Throughput(), SampleGrid(every_n_steps=2), Frechet(Pixels(), every_n_steps=2)]
    trainer = quiet_trainer(tmp_path, max_steps=3, accumulate_grad_batches=4, log_every_n_steps=1, callbacks=callbacks)
    trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=32))
    assert [step for what, step in calls if what == "draw"] == [2, 3]
    assert [step for what, step in calls if what == "measure"] == [2, 3]
    assert [step for what, step in calls if what == "levels"] == [1, 2, 3]
