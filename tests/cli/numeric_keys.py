"""Every number that a file or a command line can contain, found in the signatures of classes and in parsers."""

import collections.abc
import contextlib
import inspect
import math
import resource
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger

from asyncdiff import AsyncDiffusion, denoising, latents, noise, sampling, tasks
from asyncdiff.__main__ import load_command
from asyncdiff.cli.errors import ReportingParser
from asyncdiff.cli.errors.diagnosis import explain_entries
from asyncdiff.cli.errors.entries import Entry
from asyncdiff.cli.errors.null_values import alternatives, constructor_actions, is_nullable, null_keys
from asyncdiff.cli.errors.suggestions import known_classes
from asyncdiff.cli.errors.user_errors import user_error_message
from asyncdiff.cli.trainer_ranges import check_logger, check_trainer

ROOT = Path(__file__).resolve().parents[2]
VALUES = {
    "minus one": -1,
    "zero": 0,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "null": None,
    "a string": "many",
    "true": True,
    "2**64": 2**64,
    "10**30": 10**30,
}
MEMORY = 2**30  # bytes that building an object may take
SEQUENCES = (list, tuple, collections.abc.Sequence)
# What the model, the data and the trainer of a file can name; the classes in their arguments follow.
BASES = (
    *(noise.LevelSampler, noise.Process, denoising.Weighting, denoising.Target, sampling.ImageSampler, latents.Codec),
    *(tasks.Task, torch.nn.Module, LightningDataModule, Callback, Logger),
)
NETWORK = {
    "class_path": "asyncdiff.networks.DiT",
    "init_args": {"channels": 1, "patch_size": 2, "dim": 32, "depth": 1, "heads": 2, "classes": 10},
}
# A value for each argument that has no default, by its name.
REQUIRED = {
    "network": NETWORK,
    "path": {"class_path": "asyncdiff.noise.AsyncPatch"},
    "order": {"class_path": "asyncdiff.noise.Raster"},
    "levels": {"class_path": "asyncdiff.noise.Shared"},
    "mask": {"class_path": "asyncdiff.noise.Half"},
    "features": {
        "class_path": "asyncdiff.evaluation.TrainedClassifier",
        "init_args": {"channels": 1, "classes": 2, "width": 1},
    },
    "strength": 1.0,
    "scale": 1.5,
    "grid": [[0, 1], [2, 3]],
    "maps": [[[0.0]], [[1.0]]],
    "factor": 2,
    "size": 8,
    "channels": 1,
    "classes": 2,
    "model": "test_resnet",
    **dict.fromkeys(("image", "root", "save_dir", "encoder", "decoder"), "nowhere"),
}
# Arguments that keep objects small, or without which others have no effect.
SMALL = {
    "AsyncDiffusion": {"image_size": 8},
    "DiT": NETWORK["init_args"],
    "DiffusersAutoencoder": {"path": "nowhere"},
    "EdmLatents": {"size": 8},
    "Outpaint": {"top": 8},
    "Trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "default_root_dir": "nowhere"},
    "TrainedClassifier": {"channels": 1, "classes": 2, "width": 1},
    "UNet": {"channels": 1, "width": 8, "multipliers": [1], "blocks": 1, "attention": [0], "head_dim": 4},
}
TENSORS = ("Conditioned", "PartiallyNoised")  # take tensors, which no file contains


# A command line of every command that is valid, except for files that do not exist.
COMMANDS = {
    "sample": "nowhere",
    "inpaint": "nowhere --image nowhere.png --mask square",
    "edit": "nowhere --image nowhere.png",
    "outpaint": "nowhere --image nowhere.png --top 8 --left 8",
    "autoregress": "nowhere",
    "texture": "nowhere",
    "serve": "nowhere",
    "evaluate --samples": "nowhere",
    "evaluate --likelihood": "nowhere",
    "evaluate --inpainting": "nowhere",
    "levels": "nowhere.yaml",
    "ablate": "nowhere.yaml",
    "cache-latents": "--data nowhere.yaml --codec nowhere.yaml --out latents",
    "port": "nowhere.pt --output new.ckpt",
}


class Key(NamedTuple):
    """Number that a file can contain.

    Attributes:
        kind: class whose constructor takes it.
        name: name of the argument, dotted below a section.
        hint: type of the argument.
        default: default value, None if it is required.
        nullable: whether null is valid.
    """

    kind: type
    name: str
    hint: Any
    default: Any
    nullable: bool

    def __str__(self) -> str:
        return f"{self.kind.__name__}.{self.name}"

    def variants(self, value: Any) -> Iterator[Any]:
        """Yield the value itself, and as the first number in a list if the argument is one."""
        options = [option for option in alternatives(self.hint) if option is not type(None)]
        lists = [option for option in options if typing.get_origin(option) in SEQUENCES]
        if len(lists) < len(options) or isinstance(value, str) or value is None:
            yield value
        if lists and value is not None:
            given = REQUIRED.get(self.name) if self.default is None else self.default
            yield _with_first(given, value) if isinstance(given, list | tuple) else [value]


def numbers(hint: Any) -> bool:
    """Return whether a type is a number, or contains one."""
    if typing.get_origin(hint) is typing.Literal:
        return False
    return hint in (int, float) or any(map(numbers, typing.get_args(hint)))


@cache
def classes() -> tuple[type, ...]:
    """Return every class with numbers that a file for train.py may name, the model and the trainer included."""
    used = {path for file in ROOT.glob("experiments/**/*.yaml") for path in _class_paths(yaml.safe_load(file.open()))}
    found: dict[type, None] = {}
    waiting: list[Any] = [*BASES]
    while waiting:
        base = waiting.pop()
        for path, kind in known_classes().items():
            public = hasattr(sys.modules[path.rpartition(".")[0]], "__path__")  # layers of networks are not
            allowed = path in used if path.startswith("lightning") else public or base is not torch.nn.Module
            if allowed and issubclass(kind, base) and not inspect.isabstract(kind) and kind not in found:
                found[kind] = None
                waiting += _bases([getattr(action, "_typehint", None) for action in constructor_actions(kind)])
    named = [kind for kind in found if kind.__name__ not in TENSORS and not kind.__name__.endswith(("Mixin", "Module"))]
    return tuple(sorted({AsyncDiffusion, Trainer, *named}, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"))


@cache
def keys(kind: type) -> tuple[Key, ...]:
    """Return the numbers among the constructor arguments of a class."""
    actions = [action for action in constructor_actions(kind) if hasattr(action, "_typehint")]
    return tuple(
        Key(kind, action.dest, action._typehint, action.default, is_nullable(action))
        for action in actions
        if numbers(action._typehint)
    )


def build(kind: type, changes: Mapping[str, Any]) -> Any:
    """Build an object as train.py does, from small arguments and some that are changed; raise the same errors."""
    small = {action.dest: REQUIRED[action.dest] for action in constructor_actions(kind) if action.required}
    arguments = {**small, **SMALL.get(kind.__name__, {})}
    for name, value in changes.items():
        section, _, setting = name.rpartition(".")
        (arguments.setdefault(section, {}) if section else arguments)[setting] = value
    parser = _parser(kind)
    path = f"{kind.__module__}.{kind.__qualname__}"
    with bounded_memory():
        parsed = parser.parse_object({"x": {"class_path": path, "init_args": arguments}})
        if key := next(null_keys(parser._actions, parsed), None):
            raise NullError(key)
        if kind is Trainer:
            check_trainer(parsed.x.init_args, "fit", on_cpu=True)
        check_logger(parsed.x)
        return parser.instantiate(parsed).x


class ParserFoundError(Exception):
    """Raised in place of parsing, with the parser."""


def command_numbers(command: str) -> dict[str, Any]:
    """Return the actions of a command's options that are numbers, by the name of the option."""

    def stop(parser: ReportingParser, *_: Any, **__: Any) -> NoReturn:
        raise ParserFoundError(parser)

    name, *argv = [*command.split(), *COMMANDS[command].split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReportingParser, "parse_args", stop)
        with pytest.raises(ParserFoundError) as found:
            load_command(name)(argv)
    return {
        action.option_strings[0]: action
        for action in found.value.args[0]._actions
        if action.option_strings and numbers(getattr(action, "_typehint", None) or action.type)
    }


class NullError(Exception):
    """Raised where train.py reports null."""


def reason(key: Key, value: Any, error: Exception) -> str | None:
    """Return the one-line message in which train.py would report an error, None if it would be a traceback."""
    if (message := user_error_message(error)) is not None:
        return message
    if not isinstance(error, NullError) and "Parser key" not in str(error):
        return None
    path = f"{key.kind.__module__}.{key.kind.__qualname__}"
    entries = [Entry("x.class_path", path, "a.yaml:1"), Entry(f"x.init_args.{key.name}", value, "a.yaml:2")]
    message = explain_entries(_parser(key.kind), entries, error)
    return message if message.startswith("a.yaml:2: ") else None


@contextlib.contextmanager
def bounded_memory(extra: int = MEMORY) -> Iterator[None]:
    """Let allocations of more than `extra` bytes fail, on Linux."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if (used := Path("/proc/self/statm")).exists():
        pages = int(used.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@cache
def _parser(kind: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "x")
    return parser


def _bases(hints: Sequence[Any]) -> list[type]:
    """Return the classes of this project in types."""
    found = []
    for hint in hints:
        found += _bases(typing.get_args(hint))
        if isinstance(hint, type) and hint.__module__.partition(".")[0] in ("asyncdiff", "datamodules"):
            found.append(hint)
    return found


def _class_paths(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["class_path"]] if "class_path" in node else []
        node = list(node.values())
    for item in node if isinstance(node, list) else []:
        yield from _class_paths(item)


def _with_first(given: Sequence[Any], value: Any) -> Any:
    """Return a copy of nested lists with another first number."""
    if not isinstance(given, list | tuple):
        return value
    return [_with_first(given[0], value), *given[1:]]
