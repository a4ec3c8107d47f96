"""`python -m asyncdiff cache-latents --data X --codec Y --out DIR`: encode a dataset once and store its latents."""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import multiprocessing
from tqdm.auto import tqdm

from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.distributed import environment
from asyncdiff.cli.commands.shared.experiment_file import Experiment
from asyncdiff.cli.commands.shared.options import add_device, check_device, command_parser
from asyncdiff.cli.errors import one_line_errors
from asyncdiff.latents import Codec
from asyncdiff.latents.cache import Settings, cache, verify
from datamodules.base import ImageDataModule
from datamodules.storage.latent_shards import read_manifest

DESCRIPTION = "Encode the images of a data module with a codec, and store the latents for datamodules.LatentCache."
DATA = """data module: an experiment's YAML file (its section data is used), a YAML file with {class_path, init_args},
or a class path; set its arguments with options such as --data.init_args.root PATH"""
CODEC = """codec: an experiment's YAML file (its model.codec is used), a YAML file with {class_path, init_args}, or a
class of asyncdiff.latents; set its arguments with options such as --codec.init_args.path PATH"""


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, encode the dataset or verify the cache, and print a summary."""
    expanded = [expand_section(argument, before) for before, argument in zip(["", *argv], argv, strict=False)]
    parser = _parser()
    options = parser.parse_args(expanded)
    if options.verify:
        _verify(options.out)
        return
    if options.processes > 1:
        _spawn(options.processes, argv)
        _print_summary(read_manifest(options.out), options.out)
        return
    rank, world, local = environment()
    built = parser.instantiate(options)
    for name in ("data", "codec"):
        if built[name] is None:
            raise ValueError(f"--{name} is required: add --{name} FILE.yaml, see --help")
    manifest = cache(
        built.data,
        built.codec.to(_device(options.device, local)),
        options.out,
        Settings(tuple(options.splits.split(",")), options.dtype, options.flip, options.shard_size),
        batch_size=options.batch_size,
        rank=rank,
        world=world,
        report=lambda line: tqdm.write(line, file=sys.stderr),
    )
    if manifest is None:
        print(f"process {rank} of {world} has finished; {options.out} is complete once all shards have been encoded")
    else:
        _print_summary(manifest, options.out)


def expand_section(argument: str, before: str) -> str:
    """Replace the experiment file of --data or --codec with JSON of the section in that file.

    Args:
        argument: argument of the command line; returned unchanged unless it is such a file.
        before: preceding argument.

    Returns:
        Argument to parse.
    """
    for option, key in (("--data", "data"), ("--codec", "model.codec")):
        prefix = f"{option}=" if argument.startswith(f"{option}=") else ""
        file = Path(argument.removeprefix(prefix))
        if (before == option or prefix) and file.suffix in (".yaml", ".yml"):
            return prefix + json.dumps(Experiment(file).section(key))
    return argument


def _device(name: str, local: int) -> str:
    """Return the device of a process; with cuda, the GPU with the number of its local rank, wrapping around."""
    check_device(name)
    return f"cuda:{local % torch.cuda.device_count()}" if name == "cuda" else name


def _spawn(count: int, argv: Sequence[str]) -> None:
    """Run the command in `count` processes on this machine; if one fails or this process ends, the others end, too."""
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


def _encode_share(rank: int, count: int, command: Sequence[str]) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    with one_line_errors(), trusted_packages.restrict_imports(command) as rest:
        main(rest)


def _verify(out: Path) -> None:
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


def _parser() -> Any:
    parser = command_parser("cache-latents", DESCRIPTION)
    parser.add_argument("--data", type=ImageDataModule | None, sub_configs=True, help=DATA)
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the cache; existing complete shards are kept"
    )
    parser.add_argument(
        "--splits", type=str, default="train,val,test", help="splits to encode; test is skipped if it equals val"
    )
    parser.add_argument(
        "--dtype", type=Literal["float16", "float32"], default="float16", help="data type of the latents on disk"
    )
    parser.add_argument("--flip", type=bool, default=True, help="whether to store latents of mirrored images as well")
    parser.add_argument("--shard_size", type=int | None, help="number of images per shard (default: 256 MB worth)")
    parser.add_argument("--batch_size", type=int, default=64, help="number of images per encoding batch")
    add_device(parser)
    parser.add_argument("--processes", type=int, default=1, help="number of processes to start, each with its own GPU")
    parser.add_argument(
        "--verify", action="store_true", help="check every byte of an existing cache instead of encoding"
    )
    return parser
