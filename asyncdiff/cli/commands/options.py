"""How all commands read their words. Whatever is wrong with them is raised; the dispatcher puts it into one line."""

import re
from typing import Any, Literal

import torch

from asyncdiff.cli.errors import ReportingParser
from asyncdiff.latents import Codec


def command_parser(command: str, description: str) -> ReportingParser:
    """An empty parser for `python -m asyncdiff COMMAND`; arguments are added as to any of jsonargparse."""
    # Half an option is a typing error: it must not count as the option that begins with it.
    # OmegaConf, so that files may interpolate as those of train.py.
    return ReportingParser(
        prog=f"python -m asyncdiff {command}", description=description, allow_abbrev=False, parser_mode="omegaconf+"
    )


def add_device(parser: ReportingParser) -> None:
    """The option --device."""
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=usual, help="cpu, cuda, cuda:1, mps; cuda where there is one")


def add_weights(parser: ReportingParser) -> None:
    """The option --weights."""
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)


def with_underscores(word: str) -> str:
    """Options may be spelt with dashes, too."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def with_codec(model: Any, codec: Codec | None) -> None:
    """Give the model a codec in place of its own, if there is one; ValueError if its latents are others."""
    if codec is None:
        return
    if codec.channels != model.shape[0]:
        raise ValueError(f"--codec must have the model's {model.shape[0]} channels, got {codec.channels}: name another")
    model.codec = codec


def rows_by_columns(name: str, text: str) -> tuple[int, int]:
    """The two numbers of a word such as 16x16; ValueError with the option's `name`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise ValueError(f"{name} must be ROWSxCOLUMNS, got {text}: 16x16, say")
    return int(match[1]), int(match[2])


WEIGHTS = """auto takes the averaged weights where the run kept any, ema insists on them, raw takes those of the last
step"""
CODEC = """what makes pictures of a model of latents: a class of asyncdiff.latents or a YAML file of one; by default what
the checkpoint names, whose files may have moved"""
