"""The command line of train.py: LightningCLI with short errors, interpolation and a protected run directory."""

import difflib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

import datamodules
from asyncdiff import callbacks, denoiser, evaluation, fields, levels, masks, paths, processes, solvers, weightings
from asyncdiff.module import AsyncDiffusion
from asyncdiff.networks import dit

OURS = (callbacks, datamodules, denoiser, dit, evaluation, fields, levels, masks, paths, processes, solvers, weightings)

# Where jsonargparse's messages name the key or class that it did not know.
UNKNOWN = re.compile(
    r"Option '(?P<option>[\w.+-]+)' is not accepted"
    r"|accept option '(?P<accept>[\w.+-]+)'"
    r"|[Uu]nrecognized arguments: (?P<argument>.+?)(?: --|$)"
    r"|import path string:? (?P<path>[\w.]+)"
    r"|Problem with given class_path '(?P<class>[\w.]+)'",
)


class Parser(LightningArgumentParser):
    """A parser whose errors are one line with the nearest known name, not sixty lines of usage."""

    def print_usage(self, file: Any = None) -> None:
        """Print nothing: `--help` shows the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the message and a hint."""
        if self.exit_on_error:  # nested parsers raise; the outermost one prints
            message = _one_line(message) + _hint(message, self)
        super().error(message, ex)
        raise AssertionError("the parser's error returns to nobody")


class SaveConfig(SaveConfigCallback):
    """Saves the complete configuration of a training run beside its log; other commands leave it alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write RUN/config.yaml."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class ExperimentCLI(LightningCLI):
    """`fit | validate | test | predict` of one experiment file.

    The run directory is `trainer.default_root_dir`. `--ckpt_path last` means its checkpoints/last.ckpt; a fit that
    would start anew in a directory that holds a checkpoint is refused.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Free variables for interpolation."""
        parser.add_argument("--vars", type=dict[str, Any], default={}, help="free variables, used as ${vars.NAME}")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; errors of interpolation are errors of the user's file, too."""
        try:
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            parser.error(f"interpolation: {error}")

    def _parse_ckpt_path(self) -> None:
        """Take nothing from the checkpoint: what the user typed is what runs."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint, and protect one that would be overwritten, before anything is built."""
        if self.subcommand is None:
            return
        config: Namespace = self.config[self.subcommand]
        given = config.get("ckpt_path")
        latest = run_directory(config.trainer.get("default_root_dir")) / "checkpoints" / "last.ckpt"
        if given == "last":
            if not latest.is_file():
                self.parser.error(f"ckpt_path: there is no {latest} to continue from; leave --ckpt_path out to start")
            config["ckpt_path"] = str(latest)
        elif given and "://" not in given and not Path(given).exists():
            self.parser.error(f"ckpt_path: there is no {given}")
        elif self.subcommand == "fit" and not given and latest.is_file() and not config.trainer.get("fast_dev_run"):
            self.parser.error(
                f"trainer.default_root_dir: {latest.parent.parent} already holds a run; "
                "add --ckpt_path last to continue it, or choose another directory"
            )

    def after_fit(self) -> None:
        """Tell where the results are."""
        _tell(self.trainer)


def run_directory(default_root_dir: Any) -> Path:
    """The directory of a run, as the trainer will understand it."""
    return Path(default_root_dir) if default_root_dir else Path.cwd()


def main(args: list[str] | None = None) -> None:
    """Run one command; an error of the user's ends it with one line."""
    # ${data.init_args.x} must mean the same below `fit` as at the top of a file.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    try:
        ExperimentCLI(
            AsyncDiffusion,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            args=args,
        )
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("ASYNCDIFF_TRACEBACK") or not _raised_by_us(error):
            raise
        print(f"error: {error}\n(ASYNCDIFF_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


def _raised_by_us(error: BaseException) -> bool:
    """Whether the error was raised on purpose, in our own code, rather than deep in a library."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    homes = {Path(inspect.getfile(package)).parent for package in (callbacks, datamodules)}
    homes |= {home.parent for home in homes if home.name == "callbacks"}
    return any(home in Path(last).parents for home in homes)


@rank_zero_only
def _tell(trainer: Trainer) -> None:
    run = run_directory(trainer.default_root_dir)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, value in getattr(callback, "results", {}).items():
            print(f"{name}: {value:.3f}")
    places = {
        "pictures": run / "images",
        "checkpoint": run / "checkpoints" / "last.ckpt",
        "config": run / "config.yaml",
    }
    for what, where in places.items():
        if where.exists():
            print(f"{what}: {where}")
    print(f"curves: tensorboard --logdir {run}")


def _one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def _hint(message: str, parser: ArgumentParser) -> str:
    """The known names nearest to the unknown one, as a part of the same line."""
    match = UNKNOWN.search(message)
    if match is None:
        return ""
    unknown = next(group for group in match.groups() if group).lstrip("-").split("=")[0]
    names = _known_names(parser)
    for part in reversed(unknown.split(".")):
        near = difflib.get_close_matches(part, sorted(names - {part}), n=2, cutoff=0.7)
        if part not in names and near:
            return f" -- '{part}': did you mean {' or '.join(near)}?"
    return ""


def _known_names(parser: ArgumentParser) -> set[str]:
    """Every key and class name that a file of ours may contain."""
    names: set[str] = set()
    stack = [parser]
    while stack:
        for action in stack.pop()._actions:
            names.update(action.dest.split("."))
            stack.extend((getattr(action, "_name_parser_map", None) or {}).values())
    for kind in _known_classes():
        names.add(kind.__name__)
        names.update(inspect.signature(kind).parameters)
    return names | {"class_path", "init_args"}


def _known_classes() -> Iterator[type]:
    yield Trainer
    yield AsyncDiffusion
    for module in OURS:
        for value in vars(module).values():
            if isinstance(value, type) and not value.__name__.startswith("_"):
                yield value
