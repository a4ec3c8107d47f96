"""Parser and options shared by all commands, and the model and sampler that they select."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from asyncdiff.checkpoints import object_config
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.errors import ReportingParser
from asyncdiff.cli.errors.suggestions import did_you_mean, nearest_name
from asyncdiff.latents import Codec
from asyncdiff.sampling import (
    adaptive,  # noqa: F401  lets command lines and files use bare class names
    look_ahead,  # noqa: F401  lets command lines and files use bare class names
    repaint,  # noqa: F401  lets command lines and files use bare class names
)
from asyncdiff.sampling.samplers import ImageSampler


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


def add_model(parser: ReportingParser) -> None:
    """Add the options that select a model and its device, which `load_model` uses."""
    parser.add_argument("--ckpt_path", type=Path | None, help=CKPT_PATH)
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)
    add_device(parser)


def underscore_option(argument: str) -> str:
    """Replace dashes in an option name with underscores, so that both spellings work."""
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if argument.startswith("--") else argument


def split_option(argv: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Split argv into all other arguments, and an option and those nested below it with their values."""
    rest: list[str] = []
    taken: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name == option or name.startswith(f"{option}."):
            taken += [argument] if equals else [argument, *islice(arguments, 1)]
        else:
            rest.append(argument)
    return rest, taken


def check_device(name: str) -> None:
    """Raise ValueError unless a device is available."""
    # Without an allocation, for which every process of an evaluation would occupy memory of the first GPU.
    counts = {"cpu": 1}
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        counts[accelerator.type] = torch.accelerator.device_count()
    kind, _, index = name.partition(":")
    if name not in counts and not (index.isdecimal() and int(index) < counts.get(kind, 0)):
        raise ValueError(f"--device {name} is not available on this machine: use cpu")


def load_model(checkpoint: Path, options: Any) -> Any:
    """Load the model from a checkpoint, with the weights, codec and device given by the options."""
    from asyncdiff.training.lightning_module import AsyncDiffusion  # imported late because it imports Lightning

    device, codec = getattr(options, "device", "cpu"), getattr(options, "codec", None)
    check_device(device)
    model: Any = AsyncDiffusion.load_from_checkpoint(
        checkpoint, device, weights=options.weights, allow=trusted_packages.of_models()
    )
    if codec is not None:
        if codec.channels != (channels := model.shape[0]):
            raise ValueError(
                f"--codec has {codec.channels} channels, but the model has {channels}: choose a codec that matches"
            )
        model.codec = codec
    return model


def with_arguments(sampler: ImageSampler, **changes: Any) -> ImageSampler:
    """Return a copy of a sampler with some constructor arguments replaced; raise ValueError if it lacks one of them."""
    config = object_config.describe(sampler)
    for name, value in changes.items():
        if name not in config["init_args"]:
            raise ValueError(
                f"--{name} does not apply to {type(sampler).__name__}, which has no argument {name}: drop it"
            )
        config["init_args"][name] = object_config.describe(value)
    built: ImageSampler = object_config.build(config, trusted_packages.of_models())
    return built


def parse_names(name: str, text: str, allowed: Iterable[str]) -> list[str]:
    """Parse a list of names such as thin,wide; return all allowed ones if `text` is empty."""
    names = [part.strip() for part in text.split(",")] if text else list(allowed)
    if len(set(names)) < len(names):
        raise ValueError(f"{name} must not repeat a name, got {text}: list each name once")
    for part in names:
        if part not in allowed:
            suggestion = did_you_mean(nearest_name(part, allowed))
            raise ValueError(f"{name} must be some of {','.join(allowed)}, got {part}{suggestion}")
    return names


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
