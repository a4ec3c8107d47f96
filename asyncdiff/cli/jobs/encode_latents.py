"""Encode a dataset and store its latents, alone or with the other processes of torchrun, SLURM or --processes."""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from tqdm import tqdm

from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.options import choose_device
from asyncdiff.cli.errors import one_line_errors
from asyncdiff.cli.jobs.distributed import environment
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.latents.cache import Settings, cache, verify
from asyncdiff.precision import computing_in
from datamodules.storage.latent_shards import read_manifest


def encode(options: Any) -> None:
    """Encode this process's share of the dataset, and print a summary if that completes the cache."""
    rank, world, local = environment()
    device = _device(options, local)
    # Processes that share the work have different ranks; others would encode the same shards.
    lock = options.out / f".rank_{rank}.lock"
    with hold(options.out, "being encoded", lock=lock), computing_in(options.precision, device):
        manifest = cache(
            options.data,
            options.codec.to(device),
            options.out,
            Settings(
                tuple(options.splits.split(",")), options.dtype, options.flip, options.shard_size, options.precision
            ),
            batch_size=options.batch_size,
            rank=rank,
            world=world,
            report=lambda line: tqdm.write(line, file=sys.stderr),
        )
    if manifest is None:
        print(f"process {rank} of {world} has finished; {options.out} is complete once all shards have been encoded")
    else:
        _print_summary(manifest, options.out)


def expand_sections(argv: Sequence[str]) -> list[str]:
    """Replace the experiment files of --data and --codec with JSON of the sections in these files."""
    return [_expand(argument, before) for before, argument in zip(["", *argv], argv, strict=False)]


def _expand(argument: str, before: str) -> str:
    """Return an argument of the command line, replaced if it is such a file; `before` precedes it."""
    for option, key in (("--data", "data"), ("--codec", "model.codec")):
        prefix = f"{option}=" if argument.startswith(f"{option}=") else ""
        file = Path(argument.removeprefix(prefix))
        if (before == option or prefix) and file.suffix in (".yaml", ".yml"):
            return prefix + json.dumps(Experiment(file).section(key))
    return argument


def _device(options: Any, local: int) -> str:
    """Return the device of a process; with cuda, the GPU with the number of its local rank, wrapping around."""
    choose_device(options)
    name: str = options.device
    return f"cuda:{local % torch.cuda.device_count()}" if name == "cuda" else name


def spawn(options: Any, argv: Sequence[str]) -> None:
    """Run the command in --processes processes on this machine, and print a summary.

    If one of them fails or this process ends, the others end, too.

    Args:
        options: parsed options of the command.
        argv: arguments after the command name.
    """
    count = options.processes
    if environment()[1] > 1:
        raise ValueError(
            f"--processes is {count}, but torchrun or srun has started the processes already: drop --processes"
        )
    command = [*argv, "--processes=1", *trusted_packages.option_argv()]
    logging.getLogger(multiprocessing.spawn.__module__).setLevel(logging.ERROR)  # it reports that it ends the others
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # Not as daemons, which could not start the data module's workers.
    context = multiprocessing.spawn(_encode_share, (count, command), nprocs=count, join=False)
    try:
        while not context.join():
            pass
    except multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)  # the process has printed the reason
    finally:
        for process in context.processes:
            process.terminate()
        signal.signal(signal.SIGTERM, previous)
    _print_summary(read_manifest(options.out), options.out)


def _encode_share(rank: int, count: int, command: Sequence[str]) -> None:
    from asyncdiff.cli.commands.cache_latents import main

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    with one_line_errors(), trusted_packages.restrict_imports(command) as rest:
        main(rest)


def verify_cache(out: Path) -> None:
    """Check every byte of a cache; exit with an error if it is damaged."""
    try:
        manifest = verify(out)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    shards = sum(len(split["shards"]) for split in manifest["splits"].values())
    print(f"{out}: {shards} {'shard' if shards == 1 else 'shards'}, all intact")


def _print_summary(manifest: Mapping[str, Any], out: Path) -> None:
    """Print the contents of a cache, the statistics of its latents, and its folder."""
    for name, split in manifest["splits"].items():
        size = sum(shard["bytes"] for shard in split["shards"])
        skipped = f", {split['unreadable']:,} unreadable ones skipped" if split["unreadable"] else ""
        shape = "x".join(map(str, split["shape"]))
        print(
            f"{name}: {split['count']:,} images{skipped}, {split['views']} x {shape} {split['dtype']}, "
            f"{len(split['shards'])} {'shard' if len(split['shards']) == 1 else 'shards'}, {size / 1e6:,.1f} MB"
        )
    for name, split in manifest["splits"].items():
        for statistic in ("mean", "std"):
            values = " ".join(f"{value:.2f}" for value in split[statistic])
            print(f"{name} {statistic} per channel, as the model sees it: {values}")
    print(f"cache: {out}")
