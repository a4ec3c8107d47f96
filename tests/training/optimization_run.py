"""Run by test_optimization.py on two processes, one of which gets images that are not finite."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks import EMA
from asyncdiff.training import OptimizerSettings
from asyncdiff.training.fsdp2 import local_shard
from datamodules import Digits


class Poison(Callback):
    """Sets one pixel in batches of one process to NaN, and records the state of training after each step."""

    def __init__(self, batches, rank: int = 0):
        self.batches, self.rank = set(batches), rank
        self.seen: list[dict] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx in self.batches and trainer.global_rank == self.rank:
            batch["image"][1, 0, 2, 3] = torch.nan

    def on_train_batch_end(self, trainer, module, *_):
        ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
        state = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{i}.{name}": local_shard(v).clone() for i, held in state.items() for name, v in held.items()}
        self.seen.append(
            {
                "weights": {name: local_shard(p.detach()).clone() for name, p in module.named_parameters()},
                "moments": moments,
                "average": {} if ema is None else {name: v.clone() for name, v in ema.average.items()},
                "updates": 0 if ema is None else ema.updates,
                "rate": trainer.optimizers[0].param_groups[0]["lr"],
                **module.guard.state(),
            }
        )


def model(stop_after: int = 10, seed: int = 0) -> AsyncDiffusion:
    optimizer = OptimizerSettings(learning_rate=1e-2, warmup_steps=100, stop_after_bad_steps=stop_after)
    return AsyncDiffusion(small_dit(), image_size=8, optimizer=optimizer, seed=seed)


def fit(
    folder: Path, module: AsyncDiffusion, callbacks: list, steps: int, *, resume=None, data=None, **options
) -> Trainer:
    torch.manual_seed(0)
    run = quiet_trainer(folder, callbacks=callbacks, **{"max_steps": steps, "log_every_n_steps": 1, **options})
    run.fit(module, datamodule=data or Digits(batch_size=8), ckpt_path=resume)
    return run


def main(strategy: str, folder: Path) -> None:
    options = {"devices": 2, "strategy": strategy, "gradient_clip_val": 1.0}
    poison = Poison({1, 3, 4}, rank=1)
    module, ema = model(stop_after=2), EMA(0.9)
    error, rank = "", -1
    try:
        fit(folder, module, [ema, poison], 8, **options)
    except ValueError as stopped:
        error, rank = str(stopped), module.global_rank
    folder.mkdir(exist_ok=True)
    torch.save({"seen": poison.seen, "error": error}, folder / f"rank_{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in ("ddp", "fully_shard"):
        main(name, Path(sys.argv[1]) / name)
