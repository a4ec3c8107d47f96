"""`python -m asyncdiff cache-latents --data X --codec Y --out DIR`: images through a codec, once, onto the disk."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from tqdm.auto import tqdm

from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.distributed import environment
from asyncdiff.cli.commands.experiment_file import Experiment
from asyncdiff.cli.commands.options import add_device, command_parser
from asyncdiff.latents import Codec
from asyncdiff.latents.cache import Settings, cache, verify
from datamodules.base import ImageDataModule
from datamodules.storage.latent_shards import read_manifest

DESCRIPTION = "Encode the images of a data module with a codec, and keep the latents for datamodules.LatentCache."
DATA = """an experiment's YAML file, whose data section counts, or one of {class_path, init_args}, or a class path;
arguments as --data.init_args.root PATH"""
CODEC = """a class of asyncdiff.latents or a YAML file of one, or an experiment's, whose model.codec counts; arguments as
--codec.init_args.path PATH"""


def main(args: Sequence[str]) -> None:
    """Read the words, encode or verify, and tell what is there."""
    words = [with_section(word, before) for before, word in zip(["", *args], args, strict=False)]
    parser = _parser()
    options = parser.parse_args(words)
    if options.verify:
        _verify(options.out)
        return
    if options.processes > 1:
        _spawn(options.processes, args, options.device)
        _tell(read_manifest(options.out), options.out)
        return
    rank, world, local = environment()
    built = parser.instantiate(options)
    for name in ("data", "codec"):
        if built[name] is None:
            raise ValueError(f"--{name} must be given, got none: see --help")
    manifest = cache(
        built.data,
        built.codec.to(_device(options.device, local)),
        options.out,
        Settings(tuple(options.splits.split(",")), options.dtype, options.flip, options.shard_size),
        batch_size=options.batch_size,
        rank=rank,
        world=world,
        tell=lambda line: tqdm.write(line, file=sys.stderr),
    )
    if manifest is None:
        print(f"process {rank} of {world}: done; other processes, or another run of the command, finish {options.out}")
    else:
        _tell(manifest, options.out)


def with_section(word: str, before: str) -> str:
    """A word that names an experiment, as JSON of the part that is meant; others as they are."""
    for option, key in (("--data", "data"), ("--codec", "model.codec")):
        prefix = f"{option}=" if word.startswith(f"{option}=") else ""
        file = Path(word.removeprefix(prefix))
        if (before == option or prefix) and file.suffix in (".yaml", ".yml"):
            return prefix + json.dumps(Experiment(file).section(key))
    return word


def _device(name: str, local: int) -> str:
    """The device of a process; each has its own GPU as far as there are so many."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that this machine has, got {name}: use cpu") from error
    return f"cuda:{local % torch.cuda.device_count()}" if name == "cuda" else name


def _spawn(count: int, args: Sequence[str], device: str) -> None:
    """Run the command in so many processes of this machine, until all are done or one has failed."""
    if environment()[1] > 1:
        raise ValueError(f"--processes must be left out under torchrun or srun, got {count}: they start the processes")
    variables = dict(os.environ)
    if device == "cpu":
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    words = [sys.executable, "-m", "asyncdiff", "cache-latents", *args, "--processes=1", *trusted_packages.option()]
    usual = signal.signal(signal.SIGTERM, _stop)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in map(str, range(count)):
            own = variables | {"RANK": rank, "WORLD_SIZE": str(count), "LOCAL_RANK": rank}
            started.append(subprocess.Popen(words, env=own, stdout=subprocess.DEVNULL))
        while any(process.poll() is None for process in started):
            if failed := [process.returncode for process in started if process.returncode]:
                sys.exit(failed[0])  # which has said why
            time.sleep(0.1)
        if failed := [process.returncode for process in started if process.returncode]:
            sys.exit(failed[0])
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        signal.signal(signal.SIGTERM, usual)


def _stop(signum: int, frame: Any) -> NoReturn:
    sys.exit(128 + signum)


def _verify(out: Path) -> None:
    try:
        manifest = verify(out)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    shards = sum(len(split["shards"]) for split in manifest["splits"].values())
    print(f"{out}: {shards} {'shard' if shards == 1 else 'shards'}, all as written")


def _tell(manifest: Mapping[str, Any], out: Path) -> None:
    """Where the cache is, what is in it, and what the latents look like."""
    for name, split in manifest["splits"].items():
        size = sum(shard["bytes"] for shard in split["shards"])
        left = f", {split['unreadable']:,} unreadable left out" if split["unreadable"] else ""
        shape = "x".join(map(str, split["shape"]))
        print(
            f"{name}: {split['count']:,} images{left}, {split['views']} x {shape} {split['dtype']}, "
            f"{len(split['shards'])} {'shard' if len(split['shards']) == 1 else 'shards'}, {size / 1e6:,.1f} MB"
        )
    for name, split in manifest["splits"].items():
        for what in ("mean", "std"):
            print(f"{name} {what} of the channels, for the model: {' '.join(f'{v:.2f}' for v in split[what])}")
    print(f"cache: {out}")


def _parser() -> Any:
    parser = command_parser("cache-latents", DESCRIPTION)
    parser.add_argument("--data", type=ImageDataModule | None, sub_configs=True, help=DATA)
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)
    parser.add_argument("--out", type=Path, required=True, help="the cache's folder; what is complete in it is kept")
    parser.add_argument("--splits", type=str, default="train,val,test", help="of the data; test if it is not val")
    parser.add_argument("--dtype", type=Literal["float16", "float32"], default="float16", help="of the latents on disk")
    parser.add_argument("--flip", type=bool, default=True, help="store the latents of the mirrored images, too")
    parser.add_argument("--shard_size", type=int | None, help="images per shard; by default such that it has 256 MB")
    parser.add_argument("--batch_size", type=int, default=64, help="images that are encoded together")
    add_device(parser)
    parser.add_argument("--processes", type=int, default=1, help="of this machine, each with a GPU if there are any")
    parser.add_argument("--verify", action="store_true", help="encode nothing: compare every byte with the manifest")
    return parser
