"""Options shared by all commands, and the model that they select."""

import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from asyncdiff.checks import MAX_SEEDS
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.command_parser import CommandParser
from asyncdiff.cli.errors.suggestions import did_you_mean, nearest_name
from asyncdiff.precision import Precision, check_precision, emulation_warning

if TYPE_CHECKING:
    from asyncdiff.model import DiffusionModel
    from asyncdiff.sampling.samplers import ImageSampler


def add_device(parser: CommandParser) -> None:
    """Add the option --device, whose default is set by `choose_device`."""
    parser.add_argument("--device", type=str | None, help=DEVICE)


def add_model(parser: CommandParser, default_precision: str = "") -> None:
    """Add the options that select a model, its device and its precision, which `load_model` uses."""
    parser.add_argument("--ckpt_path", type=Path | None, help=CKPT_PATH)
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)
    parser.add_object("--codec", "asyncdiff.latents.Codec", help=CODEC)
    add_device(parser)
    parser.add_argument("--precision", type=Precision | None, help=PRECISION.format(default_precision or OF_THE_RUN))


def choose_device(options: Any) -> None:
    """Set --device to its default if it was omitted; raise ValueError unless it is available and has --precision."""
    import torch  # imported late, after the options have been checked

    # Without an allocation, for which every process of an evaluation would occupy memory of the first GPU.
    counts = {"cpu": 1}
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        counts[accelerator.type] = torch.accelerator.device_count()
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    name = options.device
    kind, _, index = name.partition(":")
    is_index = re.fullmatch("0|[1-9][0-9]{0,3}", index)
    if name not in counts and not (is_index and int(index) < counts.get(kind, 0)):
        raise ValueError(f"--device {name} is not available on this machine: use cpu")
    if precision := getattr(options, "precision", None):
        check_precision("--precision", precision, name)
        if warning := emulation_warning("--precision", precision, name):
            print(f"warning: {warning}", file=sys.stderr)


def load_model(checkpoint: Path, options: Any) -> "DiffusionModel":
    """Load the model from a checkpoint, with the weights, codec, device and precision given by the options."""
    from asyncdiff.model import DiffusionModel  # imported late, after the options have been checked

    choose_device(options)
    model = DiffusionModel.load(
        checkpoint,
        options.device,
        weights=options.weights,
        precision=options.precision,
        allow=trusted_packages.of_models(),
    )
    return with_codec(model, options)


def with_codec(model: "DiffusionModel", options: Any) -> "DiffusionModel":
    """Return the model with the codec given by the options, if any; raise ValueError if it does not fit."""
    if options.codec is None:
        return model
    if options.codec.channels != model.shape[0]:
        raise ValueError(
            f"--codec has {options.codec.channels} channels, but the model has {model.shape[0]}: choose a codec that "
            "matches"
        )
    return replace(model, codec=options.codec)


def with_arguments(sampler: "ImageSampler", **changes: Any) -> "ImageSampler":
    """Return a copy of a sampler with some constructor arguments replaced; raise ValueError if it lacks one of them."""
    for name in changes:
        if name not in inspect.signature(type(sampler)).parameters:
            raise ValueError(
                f"--{name} does not apply to {type(sampler).__name__}, which has no argument {name}: drop it"
            )
    return sampler.replace(**changes)


def parse_integers(name: str, text: str) -> list[int]:
    """Parse a list of integers such as 0,3,8-15; raise ValueError that names the option `name`."""
    bounds: list[tuple[int, int]] = []
    for part in text.strip("[]").split(","):
        match = re.fullmatch(r"\s*(\d{1,30})(?:-(\d{1,30}))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"{name} must be integers such as 0,3,8-15, got {text}")
        bounds.append((int(match[1]), int(match[2] or match[1])))
    if (count := sum(last - first + 1 for first, last in bounds)) > MAX_SEEDS:  # before they are listed
        raise ValueError(f"{name} must be at most {MAX_SEEDS} integers, got {count} in {text}: use several calls")
    return [integer for first, last in bounds for integer in range(first, last + 1)]


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


def check_file_name(name: str, text: str) -> None:
    """Raise ValueError that names the option `name` unless a text can name a file in any folder."""
    if not text or Path(text).name != text or text == ".." or not text.isprintable() or len(text.encode()) > MAX_NAME:
        raise ValueError(f"{name} must be a file name, got {text}: leave the folder out, and use letters and digits")


def parse_grid(name: str, text: str) -> tuple[int, int]:
    """Parse a size such as 16x16; raise ValueError that names the option `name`."""
    match = re.fullmatch(r"([1-9]\d{0,9})x([1-9]\d{0,9})", text, re.ASCII)
    if not match:
        raise ValueError(f"{name} must be ROWSxCOLUMNS, got {text}: use 16x16, for example")
    return int(match[1]), int(match[2])


MAX_NAME = 200  # bytes of a name, to which suffixes are added
RUN = "run directory of train.py, .ckpt file or exported folder"
CKPT_PATH = "checkpoint file, or another run or export (default: RUN/checkpoints/last.ckpt)"
DEVICE = "device such as cpu, cuda, cuda:1 or mps (default: cuda if available, else cpu)"
PRECISION = """precision of the network: float32, tf32 (NVIDIA GPUs only) or bf16 (default: {})"""
OF_THE_RUN = "bf16 if the run was trained in 16 bits and the device has bfloat16 in hardware, else float32"
WEIGHTS = "weights to use: auto (EMA weights if there are any, else raw), ema, or raw (those of the last training step)"
CODEC = """codec that decodes the latents of a latent model: a class of asyncdiff.latents or a YAML file with one
(default: the checkpoint's; use this option if its files have moved)"""
SAMPLER = "sampler: a subclass of asyncdiff.sampling.ImageSampler or a YAML file with one (default: the run's)"
