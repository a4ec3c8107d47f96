"""Parser and options shared by all commands."""

import re
from typing import Any, Literal

import torch

from asyncdiff.cli.errors import ReportingParser
from asyncdiff.latents import Codec


def command_parser(command: str, description: str) -> ReportingParser:
    """Return a parser without arguments for `python -m asyncdiff COMMAND`, which raises its errors."""
    # allow_abbrev=False: a prefix of an option is a typing error and must not count as the option.
    # OmegaConf allows interpolation in files, as in train.py.
    return ReportingParser(
        prog=f"python -m asyncdiff {command}", description=description, allow_abbrev=False, parser_mode="omegaconf+"
    )


def add_device(parser: ReportingParser) -> None:
    """Add the option --device."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help=DEVICE)


def add_weights(parser: ReportingParser) -> None:
    """Add the option --weights."""
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)


def underscore_option(argument: str) -> str:
    """Replace dashes in an option name with underscores, so that both spellings work."""
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if argument.startswith("--") else argument


def set_codec(model: Any, codec: Codec | None) -> None:
    """Replace the model's codec unless `codec` is None; raise ValueError if the number of channels differs."""
    if codec is None:
        return
    if codec.channels != model.shape[0]:
        raise ValueError(
            f"--codec has {codec.channels} channels, but the model has {model.shape[0]}: choose a codec that matches"
        )
    model.codec = codec


def parse_grid(name: str, text: str) -> tuple[int, int]:
    """Parse a size such as 16x16; raise ValueError that names the option `name`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise ValueError(f"{name} must be ROWSxCOLUMNS, got {text}: use 16x16, for example")
    return int(match[1]), int(match[2])


RUN = "run directory of train.py, .ckpt file or exported folder"
CKPT_PATH = "checkpoint file (default: RUN/checkpoints/last.ckpt)"
DEVICE = "device such as cpu, cuda, cuda:1 or mps (default: cuda if available)"
WEIGHTS = "weights to use: auto (EMA weights if there are any, else raw), ema, or raw (those of the last training step)"
CODEC = """codec that decodes the latents of a latent model: a class of asyncdiff.latents or a YAML file with one
(default: the checkpoint's; use this option if its files have moved)"""
SAMPLER = "sampler: a subclass of asyncdiff.sampling.ImageSampler or a YAML file with one (default: the run's)"
