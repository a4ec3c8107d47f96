"""Kill runs at random moments, run them again until they finish, and compare them with uninterrupted runs.

PYTHONPATH=. python tests/faults/kill_runs.py KIND --kills 20 --seed 0     works in the current folder and prints
{"tried": 20, "lost": []} at the end.

It is a separate program so that runs can be forked from it: with everything imported, they start in milliseconds.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from killing import difference, fork, kill_tree, shown_steps, wait_for_exit

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
  optimizer: {warmup_steps: 20}
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
    # Every checkpoint is due in the last step of an epoch.
    "epochs": ["--trainer.limit_train_batches", "6"],
    "accumulating": ["--trainer.accumulate_grad_batches", "3", "--data.init_args.batch_size", "24"],
    "asynchronous_checkpoints": [
        "--trainer.plugins+=asyncdiff.checkpoints.lightning_io.AtomicCheckpointIO",
        *("--trainer.plugins.init_args.asynchronous", "true"),
    ],
    "loading": ["--data.init_args.workers", "2"],
    "two_processes": [
        *("--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.init_args.workers", "1"),
        *("--data.init_args.batch_size", "24", "--data.init_args.eval_batch_size", "90"),
    ],
}


def training(options: list[str], kills: int, rng: random.Random) -> list[str]:
    """Kill training runs with these options; return the differences."""
    Path("experiment.yaml").write_text(EXPERIMENT)

    def work(run: str) -> Callable[[], None]:
        root = ["--trainer.default_root_dir", run]
        return lambda: train(["fit", "--config", "experiment.yaml", "--auto_resume", "true", *root, *options])

    return campaign(work, kills, rng, lambda run: difference(Path("uninterrupted"), run))


def clocks(kills: int, rng: random.Random) -> list[str]:
    """Kill training runs whose parts see different clocks, and whose files get random times as in a copy."""
    Path("experiment.yaml").write_text(EXPERIMENT)
    argv = ["fit", "--config", "experiment.yaml", "--auto_resume", "true", "--trainer.default_root_dir"]

    def work(run: str) -> Callable[[], None]:
        offset = rng.choice([-86400, -3600, -7, 0, 7, 3600, 86400])
        for file in sorted(Path(run).rglob("*")):
            moment = rng.uniform(1e9, 2e9)
            os.utime(file, (moment, moment), follow_symlinks=False)

        def begin() -> None:
            now = time.time
            time.time = lambda: now() + offset
            train([*argv, run])

        return begin

    def judge(run: Path) -> str | None:
        shown, expected = shown_steps(run), shown_steps(Path("uninterrupted"))
        wrong = sorted(tag for tag in expected if shown.get(tag) != expected[tag])
        return difference(Path("uninterrupted"), run) or (
            f"TensorBoard shows other steps of {wrong}" if wrong else None
        )

    return campaign(work, kills, rng, judge)


def copies(kills: int, rng: random.Random) -> list[str]:
    """Kill runs, and continue in a copy, or after moving them; return the differences, also of the originals."""
    Path("experiment.yaml").write_text(EXPERIMENT)
    originals: dict[Path, dict[str, str]] = {}

    def newest(run: Path) -> Path:
        return max(run.iterdir(), key=lambda part: int(part.name))

    def work(run: str) -> Callable[[], None]:
        if not any(Path(run).glob("*/config.yaml")):
            shutil.rmtree(run, ignore_errors=True)
            originals.clear()  # of a run that was faster than expected, which is made again
            argv = ["--config", "experiment.yaml", "--trainer.default_root_dir", f"{run}/0"]
        else:
            before = newest(Path(run))
            part = before.with_name(str(int(before.name) + 1))
            if rng.random() < 0.3:
                before.rename(part)
            else:
                shutil.copytree(before, part, symlinks=rng.random() < 0.5)
                originals[before] = file_hashes(before)
            argv = ["--config", f"{part}/config.yaml"]
        return lambda: train(["fit", *argv, "--auto_resume", "true"])

    def judge(run: Path) -> str | None:
        for original, hashes in originals.items():
            if original.exists() and file_hashes(original) != hashes:
                return f"{original} has changed"
        return difference(newest(Path("uninterrupted")), newest(run))

    return campaign(work, kills, rng, judge)


def caching(kills: int, rng: random.Random) -> list[str]:
    """Kill runs that cache latents; return the differences."""
    argv = ["cache-latents", "--data", "datamodules.Digits", "--codec", "asyncdiff.latents.Identity"]
    argv += ["--codec.init_args.channels", "1", "--shard_size", "20", "--batch_size", "10"]
    return campaign(lambda run: lambda: command([*argv, "--out", run]), kills, rng, different_files)


def ablation(kills: int, rng: random.Random) -> list[str]:
    """Kill ablations with two trials; return the differences."""
    Path("experiment.yaml").write_text(EXPERIMENT)
    Path("ablation.yaml").write_text(ABLATION)

    def judge(run: Path) -> str | None:
        if len(list(run.glob("*/*/finished.json"))) != 2:
            return "trials"
        trials = ("shared/seed_0", "async/seed_0")
        differences = (difference(Path("uninterrupted") / trial, run / trial) for trial in trials)
        return next(filter(None, differences), None)

    argv = ["ablate", "ablation.yaml", "--threads", "1", "--output"]
    return campaign(lambda run: lambda: command([*argv, run]), kills, rng, judge)


def campaign(
    work: Callable[[str], Callable[[], None]], kills: int, rng: random.Random, judge: Callable[[Path], str | None]
) -> list[str]:
    """Kill runs, up to four times each and `kills` times in total, let them finish, and return the differences."""
    started = time.monotonic()
    if (code := wait_for_exit(fork(work("uninterrupted"), Path("log.txt")), 300)) != 0:
        raise SystemExit(f"the uninterrupted run fails with {code}:\n{Path('log.txt').read_text()}")
    duration = time.monotonic() - started
    done, losses = 0, []
    while done < kills:
        run = Path(f"killed_{done}")
        log = Path(f"{run}.txt")
        for _ in range(min(rng.randint(1, 4), kills - done)):
            after = rng.uniform(0.1, 0.9) * duration
            child = fork(work(str(run)), log)
            if (code := wait_for_exit(child, after)) is None:
                kill_tree(child)
                done += 1
            elif code:
                break
            else:
                shutil.rmtree(run)  # faster than the measured duration
        code = wait_for_exit(child := fork(work(str(run)), log), 300)
        if code is None:
            kill_tree(child)
        wrong = judge(run) if code == 0 else f"exit code {code}"
        if wrong:
            losses.append(f"{run}: {wrong}\n{log.read_text()[-3000:]}")
        shutil.rmtree(run, ignore_errors=True)
    return losses


def different_files(run: Path) -> str | None:
    """Return the names of files that differ from those of the uninterrupted run."""
    hashes = [file_hashes(folder) for folder in (Path("uninterrupted"), run)]
    different = [name for name in hashes[0] | hashes[1] if hashes[0].get(name) != hashes[1].get(name)]
    return f"files {different}" if different else None


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files in a folder and below, by their paths in it."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


OTHERS = {"clock": clocks, "copy": copies, "caching": caching, "ablation": ablation}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[*KINDS, *OTHERS])
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(f"{options.kind} {options.seed}")
    if options.kind in KINDS:
        wrong = training(KINDS[options.kind], options.kills, rng)
    else:
        wrong = OTHERS[options.kind](options.kills, rng)
    print(json.dumps({"tried": options.kills, "lost": wrong}))
