"""Kills runs at random moments, runs them again until they end, and compares them with runs that were left alone.

PYTHONPATH=. python tests/faults/kill_runs.py KIND --kills 20 --seed 0     prints {"tried": 20, "lost": []} at its end,
and works in the present folder.

In a process of its own, from which runs fork: they start in milliseconds then, with everything imported.
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from killing import ended, forked, kill, lost

from asyncdiff.__main__ import main as command
from asyncdiff.cli.train import main as train

EXPERIMENT = """
seed_everything: 0
data: {class_path: datamodules.Digits, init_args: {batch_size: 48, eval_batch_size: 180, workers: 0}}
model:
  network:
    class_path: asyncdiff.networks.DiT
    init_args: {channels: 1, patch_size: 2, dim: 32, depth: 2, heads: 2, classes: 10, dropout: 0.1}
  levels: {class_path: asyncdiff.noise.AlongPath, init_args: {path: {class_path: asyncdiff.noise.AsyncPatch}}}
  image_size: 8
  warmup_steps: 20
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: 64
  log_every_n_steps: 3
  val_check_interval: 13
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: "${trainer.default_root_dir}", name: "", version: ""}
  callbacks:
    - {class_path: asyncdiff.callbacks.EMA, init_args: {decay: 0.99}}
    - {class_path: asyncdiff.callbacks.SampleGrid, init_args: {count: 4, columns: 2, every_n_steps: 12}}
    - {class_path: asyncdiff.callbacks.LossByLevel}
    - {class_path: lightning.pytorch.callbacks.LearningRateMonitor}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", every_n_train_steps: 6,
                  monitor: step, mode: max, save_top_k: 2, save_last: link}
"""
ABLATION = """
base: [experiment.yaml]
seeds: [0]
axes: {levels: {shared: {model.levels.init_args.path: {class_path: asyncdiff.noise.Synchronous}}, async: null}}
set: {trainer.max_steps: 30}
metrics: {train/loss: {goal: min, label: loss}}
"""
KINDS = {
    "training": [],
    "accumulating": ["--trainer.accumulate_grad_batches", "3", "--data.init_args.batch_size", "24"],
    "writing_beside": [
        "--trainer.plugins+=asyncdiff.checkpoints.lightning_io.AtomicCheckpointIO",
        *("--trainer.plugins.init_args.asynchronous", "true"),
    ],
    "loading": ["--data.init_args.workers", "2"],
    "two_processes": [
        *("--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.init_args.workers", "1"),
        *("--data.init_args.batch_size", "24", "--data.init_args.eval_batch_size", "90"),
    ],
}


def training(words: list[str], kills: int, moments: random.Random) -> list[str]:
    """What training runs with these words have lost by so many kills."""
    Path("experiment.yaml").write_text(EXPERIMENT)

    def work(run: str) -> Callable[[], None]:
        at = ["--trainer.default_root_dir", run]
        return lambda: train(["fit", "--config", "experiment.yaml", "--auto_resume", "true", *at, *words])

    return campaign(work, kills, moments, lambda run: lost(Path("whole"), run))


def caching(kills: int, moments: random.Random) -> list[str]:
    """What caches of latents have lost by so many kills."""
    words = ["cache-latents", "--data", "datamodules.Digits", "--codec", "asyncdiff.latents.Identity"]
    words += ["--codec.init_args.channels", "1", "--shard_size", "20", "--batch_size", "10"]
    return campaign(lambda run: lambda: command([*words, "--out", run]), kills, moments, unlike_folder)


def ablation(kills: int, moments: random.Random) -> list[str]:
    """What ablations of two cells have lost by so many kills."""
    Path("experiment.yaml").write_text(EXPERIMENT)
    Path("ablation.yaml").write_text(ABLATION)

    def judge(run: Path) -> str | None:
        if len(list(run.glob("*/*/finished.json"))) != 2:
            return "cells"
        found = (lost(Path("whole") / cell, run / cell) for cell in ("shared/seed_0", "async/seed_0"))
        return next(filter(None, found), None)

    words = ["ablate", "ablation.yaml", "--threads", "1", "--output"]
    return campaign(lambda run: lambda: command([*words, run]), kills, moments, judge)


def campaign(
    work: Callable[[str], Callable[[], None]], kills: int, moments: random.Random, judge: Callable[[Path], str | None]
) -> list[str]:
    """Kill works, up to four times each and until there were `kills`, let them end, and say what was lost."""
    began = time.monotonic()
    if (code := ended(forked(work("whole"), Path("log.txt")), 300)) != 0:
        raise SystemExit(f"the work itself fails with {code}:\n{Path('log.txt').read_text()}")
    duration = time.monotonic() - began
    done, found = 0, []
    while done < kills:
        run = Path(f"killed_{done}")
        log = Path(f"{run}.txt")
        for _ in range(min(moments.randint(1, 4), kills - done)):
            after = moments.uniform(0.1, 0.9) * duration
            child = forked(work(str(run)), log)
            if (code := ended(child, after)) is None:
                kill(child)
                done += 1
            elif code:
                break
            else:
                shutil.rmtree(run)  # it was faster than it is on the average
        code = ended(child := forked(work(str(run)), log), 300)
        if code is None:
            kill(child)
        wrong = judge(run) if code == 0 else f"exit code {code}"
        if wrong:
            found.append(f"{run}: {wrong}\n{log.read_text()[-3000:]}")
        shutil.rmtree(run, ignore_errors=True)
    return found


def unlike_folder(run: Path) -> str | None:
    """Whether a folder differs from the one of the work that was left alone."""
    hashes = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        for folder in (Path("whole"), run)
    ]
    different = [name for name in hashes[0] | hashes[1] if hashes[0].get(name) != hashes[1].get(name)]
    return f"files {different}" if different else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[*KINDS, "caching", "ablation"])
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn = random.Random(f"{options.kind} {options.seed}")
    if options.kind in KINDS:
        wrong = training(KINDS[options.kind], options.kills, drawn)
    else:
        wrong = {"caching": caching, "ablation": ablation}[options.kind](options.kills, drawn)
    print(json.dumps({"tried": options.kills, "lost": wrong}))
