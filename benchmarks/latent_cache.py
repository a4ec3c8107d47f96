"""Speed of reading cached latents, and a crash test: a cache that is killed repeatedly equals an uninterrupted one.

    python -m benchmarks.latent_cache read                                    # random latents of 4x32x32, 1 GB in /tmp
    python -m benchmarks.latent_cache kills --root PHOTOS --codec experiments/codecs/taef2.yaml

`read` reads batches of 256 in random order with the data loader of training, on one thread, without worker processes
and with the files in the page cache; variants are interleaved, and the table shows medians over the rounds. `kills`
sends SIGKILL to `cache-latents` at random times and runs it again until it finishes; every byte is compared with an
uninterrupted cache.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asyncdiff.latents.cache.write_shard import write_shard
from benchmarks.data import measure_rates, rates_table
from datamodules import LatentCache
from datamodules.storage.latent_shards import MANIFEST, Layout, read_header, shard_name

SHAPE, SHARD, BATCH = (4, 32, 32), 16384, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["read", "kills"])
    parser.add_argument("--count", type=int, default=131072, help="number of latents for `read`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", type=Path, help="folder of images, for `kills`")
    parser.add_argument("--codec", type=Path, help="YAML file of the codec, for `kills`")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels, for `kills`")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"read": read, "kills": kills}[options.what](options)


# Reading


class SafetensorsRows(Dataset[Tensor]):
    """Common implementation: slices of safetensors, one row at a time."""

    def __init__(self, root: Path, count: int) -> None:
        self.files = [safe_open(file, "pt").__enter__().get_slice("mean") for file in sorted(root.glob("train-*"))]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        row = index % SHARD
        return self.files[index // SHARD][row : row + 1][0, 0]


class FilePerLatent(Dataset[Tensor]):
    """One .npy file per latent."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.load(self.files[index]))


def read(options: argparse.Namespace) -> None:
    """Measure latents per second."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_cache(Path(folder) / "cache", options.count)
        files = [root / f"{at}.npy" for at in range(options.count // 16)]
        rows = np.random.default_rng(0).standard_normal((1024, *SHAPE)).astype(np.float16)
        for at, file in enumerate(files):
            np.save(file, rows[at % len(rows)])
        data = LatentCache(str(root), SHAPE[1], channels=SHAPE[0], horizontal_flip=False, batch_size=BATCH)
        slices = SafetensorsRows(root, options.count)

        def latent_cache(finish: bool) -> Any:
            def batches() -> Iterable[Tensor]:
                loader = data.train_dataloader()
                return (data.dataset("train").finish(b)["image"] if finish else b["moments"] for b in loader)

            return batches

        some = torch.utils.data.Subset(slices, torch.randperm(options.count)[: options.count // 16].tolist())
        variants = {
            "a .npy file per latent": lambda: DataLoader(FilePerLatent(files), BATCH, shuffle=True),
            "safetensors, one by one": lambda: DataLoader(some, BATCH),
            "LatentCache": latent_cache(False),
            "LatentCache, with float32 conversion and scaling": latent_cache(True),
        }
        rates = measure_rates(variants, options.rounds)
    print(rates_table(f"{options.count} latents of 4x32x32, float16", "latents/s", rates))


def write_cache(root: Path, count: int) -> Path:
    """Write a cache of random means and return its folder."""
    root.mkdir()
    generator = np.random.default_rng(0)
    splits = {
        split: write_shards(root, split, number, generator) for split, number in (("train", count), ("val", BATCH))
    }
    codec = {"class": "none", "weights": None, "channels": 4, "factor": 8, "scale": [0.18215], "shift": [0.0]}
    (root / MANIFEST).write_text(json.dumps({"version": 1, "codec": codec, "splits": splits}))
    return root


def write_shards(root: Path, split: str, count: int, generator: np.random.Generator) -> dict[str, Any]:
    entries, starts = [], range(0, count, SHARD)
    for number, first in enumerate(starts):
        rows = min(SHARD, count - first)
        index = np.arange(first, first + rows)
        mean = generator.standard_normal((rows, 1, *SHAPE), dtype=np.float32)
        file = root / shard_name(split, number, len(starts))
        write_shard(file, Layout(rows, 1, SHAPE, "float16", 1), {"mean": mean, "label": index % 10, "index": index}, {})
        header = read_header(file)
        entries.append({"file": file.name, "count": rows, "sha256": header.metadata["sha256"], "header": header.sha256})
    about = {"classes": 10, "dtype": "float16", "shape": list(SHAPE), "views": 1, "moments": ["mean"]}
    return about | {"count": count, "shards": entries}


# Crash test


def kills(options: argparse.Namespace) -> None:
    """Print a table of all kills: time, files at that time, and whether the final cache is identical."""
    if options.root is None or options.codec is None:
        sys.exit("--root and --codec are required for kills")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        start_caching(options, Path(folder) / "uninterrupted").wait()
        duration = time.perf_counter() - started
        expected, rng = contents(Path(folder) / "uninterrupted"), random.Random(0)
        shard_count = sum(name.endswith(".safetensors") for name in expected)
        print(f"uninterrupted: {duration:.1f} s, {shard_count} shards\n")
        print("| kill | after, s | complete shards | partial files | finally identical |\n|---|---|---|---|---|")
        done, out, rows = 0, Path(folder) / "killed", []
        while done < options.kills:
            after = rng.uniform(0, 1) * duration
            if killed(options, out, after):
                done += 1
                names = [file.name for file in out.glob("*")] + [file.name for file in out.glob(".*.tmp")]
                complete = sum(name.endswith(".safetensors") for name in names)
                rows.append(f"{done} | {after:.1f} | {complete} | {sum(name.endswith('.tmp') for name in names)}")
                continue
            print_rows(rows, contents(out) == expected)
            rows = []
            shutil.rmtree(out)
        start_caching(options, out).wait()
        print_rows(rows, contents(out) == expected)


def print_rows(rows: list[str], same: bool) -> None:
    for row in rows:
        print(f"| {row} | {'yes' if same else 'NO'} |", flush=True)


def start_caching(options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "asyncdiff", "cache-latents", "--data", "datamodules.ImageFolder"]
    command += ["--data.init_args.root", str(options.root), "--data.init_args.size", str(options.size)]
    command += ["--codec", str(options.codec), "--out", str(out), "--shard_size", "64", "--batch_size", "32"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def killed(options: argparse.Namespace, out: Path, after: float) -> bool:
    """Kill the command after some seconds; return False if it finished before."""
    running = start_caching(options, out)
    try:
        running.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return True
    return False


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
