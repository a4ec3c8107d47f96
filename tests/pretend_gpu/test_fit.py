"""Whole runs of train.py on pretended GPUs: no wait in a step, no mixed devices, and the weights of the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from pretend_gpu.training_runs import Run, latent_cache, train_demo, watched_run
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, GracefulShutdown, LossByLevel, StepProgressBar, Throughput
from asyncdiff.checkpoints import read_safely
from datamodules import Digits

STEPS, SETTLED = 8, 1  # the first step checks the data


def weights(folder: Path) -> dict[str, Any]:
    """The trained and averaged weights of a run's last checkpoint."""
    checkpoint = read_safely(folder / "checkpoints" / "last.ckpt")
    (average,) = checkpoint["ema"].values()
    return {**checkpoint["state_dict"], **{f"ema.{name}": x for name, x in average["weights"].items()}}


def train_on_both(folder: Path, **options: Any) -> Run:
    """Train on the pretended GPU and on the CPU; their weights must be equal up to rounding."""
    options = {"max_steps": STEPS, "val_check_interval": 4, "log_every_n_steps": 4, **options}
    run = train_demo(folder / "cuda", **options)
    assert not run.watch.mixed
    assert {batch.step for batch in run.batches} == set(range(options["max_steps"]))
    train_demo(folder / "cpu", **options, cuda=False)
    found, usual = weights(folder / "cuda"), weights(folder / "cpu")
    assert found.keys() == usual.keys()
    # On GPUs modulations are summed in another order; learning rates are at most 1e-4 in these steps.
    tolerance = 1e-6 if options.get("precision", "32-true") == "32-true" else 5e-5
    for name, x in usual.items():
        assert torch.allclose(found[name], x, rtol=0, atol=tolerance), (name, (found[name] - x).abs().max())
    return run


def test_steps_of_a_trainer_wait_for_nothing(tmp_path: Path) -> None:
    """A quick one: callbacks of every step, the bar on, gradients accumulated, and nothing else."""
    callbacks = [EMA(0.9), LossByLevel(), Throughput(), GracefulShutdown(), StepProgressBar(), LearningRateMonitor()]
    options = {"callbacks": callbacks, "enable_progress_bar": True, "logger": TensorBoardLogger(tmp_path)}
    steps = {"max_steps": 4, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    module = AsyncDiffusion(small_dit(dim=16, uncertainty=True), image_size=8)
    with watched_run() as run:
        trainer = quiet_trainer(tmp_path, accelerator="gpu", devices=1, **steps, **options)
        trainer.fit(module, datamodule=Digits(batch_size=8))
    assert len(run.batches) == 8
    assert not run.watch.mixed
    assert not run.most_waits(SETTLED, 3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_on_one_gpu_wait_for_nothing(tmp_path: Path, precision: str) -> None:
    """With all callbacks of the demo and of train.py, the bar on, validations, checkpoints and pictures."""
    run = train_on_both(tmp_path, precision=precision)
    assert not run.most_waits(SETTLED, 3)  # step 4 logs, validates, draws and saves
    assert not run.most_waits(4, 7)
    assert run.most_waits(3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fully_shard"])
def test_steps_on_two_gpus_wait_for_nothing(tmp_path: Path, strategy: str) -> None:
    run = train_on_both(tmp_path, ranks=2, strategy=strategy)
    assert not run.most_waits(SETTLED, 3)
    assert not run.most_waits(4, 7)
    assert run.ranks is not None
    assert run.ranks.calls["all_reduce"] >= 2 * STEPS  # gradients, and signals


@pytest.mark.slow
def test_steps_on_latents_wait_for_nothing(tmp_path: Path) -> None:
    run = train_on_both(tmp_path, latents=latent_cache(tmp_path / "latents", (1, 8, 8)))
    assert not run.most_waits(SETTLED, 3)
    assert not run.most_waits(4, 7)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_accumulated_batches_wait_for_nothing(tmp_path: Path, ranks: int) -> None:
    run = train_on_both(tmp_path, ranks=ranks, accumulate_grad_batches=2, val_check_interval=8)
    assert len(run.batches) == 2 * STEPS
    assert not run.most_waits(SETTLED, 3)
    assert not run.most_waits(4, 7)
