"""Run by test_fsdp2.py on two processes: train under a strategy, with all callbacks that use the network."""

import sys
from pathlib import Path

import torch
from conftest import randomize_weights
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from small_runs import Pixels, quiet_trainer, small_dit
from torch import nn

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA, Frechet, Likelihood, SampleGrid, Throughput
from asyncdiff.networks.unet import UNet
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.training import OptimizerSettings
from datamodules import Digits

STEPS, HALF = 4, 2


def network(name: str) -> nn.Module:
    if name == "dit":
        return small_dit(depth=2, uncertainty=True)
    torch.manual_seed(0)
    return randomize_weights(
        UNet(channels=1, width=8, multipliers=(1, 2), blocks=1, head_dim=8, classes=10, level_patch_size=2)
    )


def module(name: str, **options) -> AsyncDiffusion:
    defaults = {"sampler": Sampler(steps=2), "image_size": 8, "optimizer": OptimizerSettings(1e-2, warmup_steps=2)}
    return AsyncDiffusion(network(name), **defaults, **options)


def trainer(folder: Path, strategy: str, callbacks: list, steps: int) -> Trainer:
    torch.manual_seed(0)
    return quiet_trainer(
        folder,
        devices=2,
        strategy=strategy,
        callbacks=callbacks,
        max_steps=steps,
        gradient_clip_val=1.0,
        val_check_interval=HALF,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
        log_every_n_steps=1,
        enable_checkpointing=True,
        logger=TensorBoardLogger(str(folder), name="", version=""),
    )


def callbacks(folder: Path) -> list:
    return [
        EMA(0.9),
        SampleGrid(count=3, every_n_steps=HALF),
        Frechet(Pixels(), count=9, every_n_steps=HALF),
        Likelihood(points=2, count=6),
        Throughput(),
        ModelCheckpoint(str(folder), filename="{step}", every_n_train_steps=HALF, save_top_k=-1),
    ]


def main(strategy: str, folder: Path) -> None:
    results = {}
    for name in ("dit", "unet"):
        data = {"datamodule": Digits(batch_size=16)}
        active = callbacks(folder / name)
        run = trainer(folder / name, strategy, active, STEPS)
        run.fit(module(name), **data)
        likelihood = next(callback for callback in active if isinstance(callback, Likelihood))
        counted = next(callback for callback in active if isinstance(callback, Throughput))._flops or 0
        measured = {**run.callback_metrics, **likelihood.results, "flops": counted}
        results[name] = {tag: float(value) for tag, value in measured.items()}
    # 359 images for two processes in batches of 179: one of them has a batch more, and must not wait for the other.
    uneven = trainer(folder / "uneven", strategy, [], STEPS)
    uneven.limit_val_batches = 1.0
    uneven.validate(module("dit"), datamodule=Digits(batch_size=16, eval_batch_size=179), verbose=False)
    results["uneven"] = {tag: float(value) for tag, value in uneven.callback_metrics.items()}
    # Resume from the middle, and start a new run from the weights alone, under the same strategy.
    second = folder / "resumed"
    resumed = trainer(second, strategy, callbacks(second), STEPS)
    resumed.fit(module("dit"), ckpt_path=str(folder / "dit" / f"step={HALF}.ckpt"), datamodule=Digits(batch_size=16))
    tuned = folder / "tuned"
    start = module("dit", pretrained=str(folder / "dit" / f"step={STEPS}.ckpt"))
    keep = ModelCheckpoint(str(tuned), filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tuned, strategy, [EMA(0.9), keep], 1).fit(start, datamodule=Digits(batch_size=16))
    if resumed.is_global_zero:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for strategy in ("ddp", "fully_shard"):
        main(strategy, Path(sys.argv[1]) / strategy)
