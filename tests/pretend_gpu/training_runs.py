"""Runs of train.py and of trainers on a pretended GPU, with what every batch of them waited for."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from latent_caches import write_latent_cache
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from pretend_gpu.fake_ranks import FakeRanks, fake_ranks
from pretend_gpu.pretended_cuda import pretended_cuda
from pretend_gpu.watch import Watch

import asyncdiff
from asyncdiff.cli.train import main

DEMO = Path(asyncdiff.__file__).parents[1] / "experiments" / "demo.yaml"
# Arguments that make the demo's callbacks small.
SMALLER: dict[str, dict[str, Any]] = {
    "SampleGrid": {"count": 4, "columns": 2, "every_n_steps": 4},
    "InpaintingGrid": {"count": 2, "columns": 1, "every_n_steps": 4},
    "DenoisingStrip": {"count": 1, "frames": 2},
    "Frechet": {"count": 16},
    "Likelihood": {"count": 8, "points": 2},
    "Calibration": {"count": 8},
    "LevelMaps": {"images": 16},
    "ModelCheckpoint": {"every_n_train_steps": 4},
}
# Every rank pretends to be on a machine of its own, so that Lightning starts no processes.
FIRST_NODE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "0", "LOCAL_RANK": "0"}


@dataclass
class Batch:
    """What a training batch waited for, until the next one began.

    Attributes:
        step: optimizer steps before it.
        waits: (what, FILE:LINE) of every wait.
        kernels: number of operators that the GPU was given.
    """

    step: int
    waits: list[tuple[str, str]] = field(default_factory=list)
    kernels: int = 0


@dataclass
class Run:
    """What was seen of a run: of the whole, of every batch, and of its collectives, if it has several ranks."""

    watch: Watch
    batches: list[Batch] = field(default_factory=list)
    ranks: FakeRanks | None = None

    def most_waits(self, first: int, last: int) -> list[tuple[str, str]]:
        """Return the waits of the batch that has most of them, from optimizer step `first` to before `last`."""
        chosen = [batch.waits for batch in self.batches if first <= batch.step < last]
        assert chosen, f"no batch from step {first} to {last}"
        return max(chosen, key=len)


@contextmanager
def watched_run(ranks: int = 1, cuda: bool = True) -> Iterator[Run]:
    """Pretend that this process trains on a GPU, or on the CPU for comparison, and watch every batch.

    Args:
        ranks: number of processes in the group, of which this is the first.
        cuda: whether collectives are those of GPUs.
    """
    with ExitStack() as stack:
        run = Run(watch := stack.enter_context(pretended_cuda()))
        if ranks > 1:
            stack.enter_context(mock.patch.dict(os.environ, FIRST_NODE))
            run.ranks = stack.enter_context(fake_ranks(watch, ranks, "nccl" if cuda else "gloo"))
        advance = _TrainingEpochLoop.advance

        def watched(loop: _TrainingEpochLoop, *args: Any) -> None:
            _end_batch(run)
            watch.step()
            run.batches.append(Batch(loop.global_step))
            advance(loop, *args)

        stack.enter_context(mock.patch.object(_TrainingEpochLoop, "advance", watched))
        stack.callback(_end_batch, run)
        yield run


def _end_batch(run: Run) -> None:
    """Move what was seen since the last batch began to it."""
    if run.batches:
        run.batches[-1].waits = list(run.watch.waits)
        run.batches[-1].kernels = sum(run.watch.kernels.values())
    run.watch.waits.clear()
    run.watch.kernels.clear()


def train_demo(folder: Path, *, ranks: int = 1, cuda: bool = True, latents: str = "", **options: Any) -> Run:
    """Run `train.py fit` with the demo's file made small, and with everything that train.py adds by default.

    Args:
        folder: run directory.
        ranks: number of processes, of which this is the first.
        cuda: whether to train on the GPU, or on the CPU for comparison.
        latents: folder of a cache of latents (1, 8, 8) to train on instead.
        options: further options of the trainer.
    """
    devices = {"num_nodes": ranks, "devices": 1, "strategy": "ddp" if ranks > 1 else "auto"}
    config = small_demo(
        {"default_root_dir": str(folder), "accelerator": "gpu" if cuda else "cpu", **devices, **options}
    )
    if latents:
        arguments = {"root": latents, "size": 8, "channels": 1, "batch_size": 16}
        config["data"] = {"class_path": "datamodules.LatentCache", "init_args": arguments}
        bounds = next(c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("Likelihood"))
        bounds["init_args"]["decoder"] = {"class_path": "asyncdiff.denoising.GaussianDecoder"}
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    with watched_run(ranks, cuda) as run:
        main(["fit", "--config", str(file)])
    return run


def small_demo(options: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the demo with all its callbacks, small, and with options of the trainer."""
    config: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    config["model"]["network"]["init_args"] |= {"dim": 32, "depth": 1, "heads": 2}
    config["model"]["sampler"]["init_args"]["steps"] = 2
    config["data"]["init_args"]["batch_size"] = 16
    config["trainer"] |= {"limit_val_batches": 1, **options}
    for callback in config["trainer"]["callbacks"]:
        arguments = callback.setdefault("init_args", {})
        arguments |= SMALLER.get(callback["class_path"].split(".")[-1], {})
        if "features" in arguments:
            arguments["features"]["init_args"] |= {"epochs": 1, "width": 4, "dim": 8}
    return config


def latent_cache(folder: Path, shape: tuple[int, int, int], classes: int = 10) -> str:
    """Write a cache of random latents with a variance, of 32 images per split, and return its folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    arrays = {name: (rng.normal(size=(32, 2, *shape)) / 4).astype(np.float16) for name in ("mean", "logvar")}
    arrays |= {"label": np.arange(32) % classes, "index": np.arange(32)}
    return str(write_latent_cache(folder, {"train": arrays, "val": arrays}, shard=32, scale=[0.5], shift=[0.1]))
