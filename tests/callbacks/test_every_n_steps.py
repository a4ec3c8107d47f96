from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from small_runs import Pixels, quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, Calibration, Frechet, LevelMaps, Likelihood, LossByLevel, SampleGrid, Throughput
from asyncdiff.callbacks.every_n_steps import EveryNSteps
from datamodules import Digits


def at(step: int) -> Mock:
    return Mock(spec=Trainer, global_step=step)


@pytest.mark.parametrize(("interval", "due"), [(2, [6, 8]), (0, [])])
def test_schedule_is_due_once_per_step_and_not_at_the_start(interval, due):
    schedule = EveryNSteps(interval)
    schedule.start(at(4))
    assert [step for step in (4, 4, 5, 5, 6, 6, 7, 8) if schedule.is_due(at(step))] == due


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: EveryNSteps(-3), "every_n_steps must be at least 0, got -3"),
        (lambda: EMA(-0.1), "decay must lie in .*got -0.1"),
        (lambda: EMA(1.0), "decay must lie in .*got 1.0"),
        (lambda: Calibration(count=0), "count must be at least 1, got 0"),
        (lambda: Calibration(bins=0), "bins must be at least 1, got 0"),
        (lambda: Calibration(groups=1), "groups must be at least 2, got 1"),
        (lambda: Calibration(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: Likelihood(count=1), "count must be at least 2, got 1"),
        (lambda: Likelihood(points=1), "points must be at least 2, got 1"),
        (lambda: Frechet(Pixels(), count=1), "count must be at least 2, got 1"),
        (lambda: LevelMaps(images=0), "images must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()


def test_callbacks_count_optimizer_steps_under_accumulation(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        SampleGrid, "draw", lambda self, t, m: calls.append(("draw", t.global_step)) or torch.zeros(3, 8, 8)
    )
    monkeypatch.setattr(Frechet, "_compute", lambda self, t, m: calls.append(("measure", t.global_step)))
    monkeypatch.setattr(LossByLevel, "_log", lambda self, t, sums: calls.append(("levels", t.global_step)))
    callbacks = [LossByLevel(), Throughput(), SampleGrid(every_n_steps=2), Frechet(Pixels(), every_n_steps=2)]
    trainer = quiet_trainer(tmp_path, max_steps=3, accumulate_grad_batches=4, log_every_n_steps=1, callbacks=callbacks)
    trainer.fit(AsyncDiffusion(small_dit(), image_size=8), datamodule=Digits(batch_size=32))
    assert [step for what, step in calls if what == "draw"] == [2, 3]
    assert [step for what, step in calls if what == "measure"] == [2, 3]
    assert [step for what, step in calls if what == "levels"] == [1, 2, 3]
