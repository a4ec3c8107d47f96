"""`python -m asyncdiff cache-latents --data X --codec Y --out DIR`: encode a dataset once and store its latents."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from asyncdiff.checks import MAX_IMAGES, at_least
from asyncdiff.cli.commands.shared.command_parser import CommandLine, CommandParser
from asyncdiff.cli.commands.shared.options import add_device
from asyncdiff.output_paths import check_output_folder

MAX_PROCESSES = max(64, 2 * (os.cpu_count() or 1))  # of one machine
DESCRIPTION = "Encode the images of a data module with a codec, and store the latents for datamodules.LatentCache."
DATA = """data module: an experiment's YAML file (its section data is used), a YAML file with {class_path, init_args},
or a class path; set its arguments with options such as --data.init_args.root PATH"""
PRECISION = "how a codec of dtype float32 computes; tf32 is faster on NVIDIA GPUs, and rounds"
CODEC = """codec: an experiment's YAML file (its model.codec is used), a YAML file with {class_path, init_args}, or a
class of asyncdiff.latents; set its arguments with options such as --codec.init_args.path PATH"""


def main(argv: Sequence[str]) -> None:
    """Parse the arguments, encode the dataset or verify the cache, and print a summary."""
    line = CommandLine("cache-latents", DESCRIPTION, _declare, argv)
    options = line.plain
    at_least("--processes", options.processes, 1, "use one per GPU", MAX_PROCESSES)
    at_least("--batch_size", options.batch_size, 1, "use 64, for example", MAX_IMAGES)
    if options.shard_size is not None:
        at_least("--shard_size", options.shard_size, 1, "omit it for shards of at most 256 MB")
    check_output_folder(options.out, "--out")
    from asyncdiff.cli.jobs import encode_latents  # imports PyTorch

    if options.verify:
        encode_latents.verify_cache(options.out)
        return
    # Before processes are started, so that a wrong option is reported once.
    built = replace(line, argv=encode_latents.expand_sections(argv)).build()
    for name in ("data", "codec"):
        if built[name] is None:
            raise ValueError(f"--{name} is required: add --{name} FILE.yaml, see --help")
    if options.processes > 1:
        encode_latents.spawn(options, argv)
    else:
        encode_latents.encode(built)


def _declare(parser: CommandParser) -> None:
    parser.add_object("--data", "datamodules.ImageDataModule", help=DATA)
    parser.add_object("--codec", "asyncdiff.latents.Codec", help=CODEC)
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
    parser.add_argument("--precision", type=Literal["float32", "tf32"], default="float32", help=PRECISION)
    parser.add_argument("--processes", type=int, default=1, help="number of processes to start, each with its own GPU")
    parser.add_argument(
        "--verify", action="store_true", help="check every byte of an existing cache instead of encoding"
    )
