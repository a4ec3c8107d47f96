"""The command line of train.py: LightningCLI with errors of one line, interpolation and a protected run directory.

Mistakes of the user's end with one line and exit code 2; ASYNCDIFF_TRACEBACK=1 shows where they were found.
"""

import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

import datamodules
from asyncdiff import callbacks, latents
from asyncdiff.checkpoints.atomic_files import replace
from asyncdiff.checkpoints.latest import held, newest_whole
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.errors import ReportingParser, one_line_errors
from asyncdiff.networks import dit, unet
from asyncdiff.noise import masks
from asyncdiff.training.module import AsyncDiffusion

# Packages whose classes a file may name without their module, as in `class_path: Digits`: they have to be loaded.
BY_NAME = (callbacks, latents, datamodules, dit, masks, unet)
# Set by SLURM and torchrun when they run the same command again after an interruption.
RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


class Parser(ReportingParser, LightningArgumentParser):
    """A parser of layered files that raises what it has to say."""

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Any, append: bool = False) -> Any:
        """Merge the `vars` of layered files; by itself jsonargparse lets a later mapping replace an earlier one."""
        if action.dest == "vars" and isinstance(value, dict):
            value = {**((cfg and cfg.get(key)) or {}), **value}
        return super()._check_value_key(action, value, key, cfg, append)


class SaveConfig(SaveConfigCallback):
    """Writes RUN/config.yaml: everything that a fit needs to run once more, here or in another directory."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it on one process, before anything else of the run."""
        if stage == "fit" and trainer.is_global_zero:
            run = run_directory(trainer.default_root_dir)
            config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
            given = config["ckpt_path"]
            # Continuing is no part of what the run computes; starting from another run's checkpoint is.
            if given and run.resolve() in Path(given).resolve().parents:
                config["ckpt_path"] = None
            config["auto_resume"] = False  # likewise; another directory may hold another run
            if root := config["trainer"]["default_root_dir"]:
                config = portable(config, root.rstrip("/"))
            run.mkdir(parents=True, exist_ok=True)
            replace(run / "config.yaml", [yaml.safe_dump(config, sort_keys=False).encode()])


class ExperimentCLI(LightningCLI):
    """`fit | validate | test | predict` of one experiment file.

    The run directory is `trainer.default_root_dir`. `--ckpt_path last` means its checkpoints/last.ckpt; a fit that
    would start anew in a directory that holds a checkpoint is refused.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Free variables for interpolation, and what to do with a run that is there."""
        parser.add_argument("--vars", type=dict[str, Any], default={}, help="free variables, used as ${vars.NAME}")
        parser.add_argument(
            "--auto_resume", type=bool, default=False, help="continue the run of this directory where there is one"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and find the checkpoint; errors of interpolation are errors of the user's file, too."""
        with reported(parser):
            super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        if not isinstance(config.trainer, Namespace):
            raise ValueError(f"trainer must be a section of keys, got {config.trainer}: max_steps: 1000, say")
        if (clip := config.trainer.get("gradient_clip_val")) is not None and math.isnan(clip):
            raise ValueError("trainer.gradient_clip_val must be a number, got nan: 1.0 is usual, null is off")
        at_least("trainer.log_every_n_steps", config.trainer.get("log_every_n_steps") or 0, 0, "50 is the default")
        config["ckpt_path"] = checkpoint_to_load(config, training=self.config.subcommand == "fit")

    def _parse_ckpt_path(self) -> None:
        """Take nothing from the checkpoint: what the user typed is what runs."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with what keeps a run from losing anything, unless the user has configured it otherwise."""
        config = self._get(self.config_init, "trainer", default={})
        plugins, given = (_listed(config.get(key)) for key in ("plugins", "callbacks"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        again = _goes_on(bool(self._get(self.config, "auto_resume", default=False)))
        if self.config.subcommand == "fit" and not any(isinstance(one, Checkpoint) for one in given):
            _tell("warning: trainer.callbacks has no ModelCheckpoint: what is learnt may not be kept")
        usual = (callbacks.ResumeLogging(take_over=again), callbacks.GracefulShutdown())
        missing: list[Any] = [one for one in usual if not any(isinstance(other, type(one)) for other in given)]
        if self.config.subcommand == "predict" and not any(isinstance(one, callbacks.ImageWriter) for one in given):
            missing.append(callbacks.ImageWriter())
        shown = config.get("enable_progress_bar") is not False
        if shown and not any(isinstance(one, ProgressBar) for one in given):
            missing.append(callbacks.StepProgressBar())
        return super().instantiate_trainer(plugins=plugins, callbacks=[*given, *missing], **kwargs)

    def before_predict(self) -> None:
        """Leave the data out: the model itself says what to draw, which Lightning hears only without a data module."""
        self.datamodule = None

    def after_fit(self) -> None:
        """Tell where the results are."""
        tell_results(self.trainer)


class Parsed(ExperimentCLI):
    """The configuration of a command line, of which nothing is built or run."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look for no checkpoint."""
        with reported(parser):
            super(ExperimentCLI, self).parse_arguments(parser, args)

    def _set_seed(self) -> None:
        """Leave the random state alone."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


@contextmanager
def reported(parser: LightningArgumentParser) -> Iterator[None]:
    """Errors of the user's files that jsonargparse does not take for any, as its own."""
    try:
        yield
    except OmegaConfBaseException as error:
        parser.error(f"interpolation: {error}")
    except UnicodeDecodeError as error:
        parser.error(f"Problems parsing config: {error}")


def parsed(args: list[str]) -> dict[str, Any]:
    """The whole configuration that a command line means, as plain containers."""
    with trusted_packages.gate(args) as left:
        made = _cli(Parsed, left)
        config: dict[str, Any] = yaml.safe_load(made.parser.dump(made.config, skip_unset=False))
    return dict(config[made.config.subcommand])


def main(args: list[str] | None = None) -> None:
    """Run one command; an error of the user's ends it with one line."""
    grouped = dist.is_available() and dist.is_initialized()
    words = sys.argv[1:] if args is None else args
    with one_line_errors(words), trusted_packages.gate(words) as left:
        _cli(ExperimentCLI, left)
    # Left to the interpreter's end, threads of a group that the trainer made may abort a run that has succeeded.
    if not grouped and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _cli(kind: type[ExperimentCLI], args: list[str]) -> ExperimentCLI:
    # ${data.init_args.x} must mean the same below `fit` as at the top of a file.
    # A dictionary that looks like a class, where any value may stand, is a dictionary.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True, instantiate_subclass_spec_in_any=False)
    _quiet()
    return kind(
        AsyncDiffusion,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_class=Parser,
        # Half a key is a typing error: it must not count as the key that begins with it.
        parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults={"use_distributed_sampler": False},
        args=args,
    )


# What libraries say to each other, and what is meant here: some words of the program have been taken, or are others;
# the batches of `predict` are an iterable whose length is right.
UNSAID = (
    "LightningCLI's args parameter",
    r"(?s).*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"(?s).*``instantiate_classes`` was deprecated",
    r"(?s).*By default only one JsonargparseDeprecationWarning",
    "Your `IterableDataset` has `__len__` defined",
)
ADVERTISED = ("Tip: For seamless cloud", "`weights_only` was not set")  # in logs; weights are read as such anyway


def _quiet() -> None:
    """Leave out what no user of this program can do anything about."""
    for message in UNSAID:
        warnings.filterwarnings("ignore", message)
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logger = logging.getLogger(f"lightning.pytorch.{name}")
        logger.removeFilter(_worth_reading)
        logger.addFilter(_worth_reading)


def _worth_reading(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in ADVERTISED)


def run_directory(default_root_dir: Any) -> Path:
    """The directory of a run, as the trainer will understand it."""
    return Path(default_root_dir).expanduser() if default_root_dir else Path.cwd()


def checkpoint_to_load(config: Namespace, *, training: bool) -> str | None:
    """The file to start from, or None to start anew, which is refused where that would overwrite a run.

    All processes of a run decide alike: it has no checkpoint before they have all passed here and met.
    """
    given = config.get("ckpt_path")
    run = run_directory(config.trainer.get("default_root_dir"))
    latest = run / "checkpoints" / "last.ckpt"
    there = held(run)
    if not given and not training:
        raise ValueError("ckpt_path must be given, or untrained weights would be judged: add --ckpt_path last")
    if given == "last" and not (there if training else latest.is_file()):
        remedy = "leave ckpt_path out to start" if training else "run fit first"
        raise FileNotFoundError(f"ckpt_path must be a checkpoint, got last, but there is no {latest}: {remedy}")
    if given == "last":
        return str(newest_whole(run)) if training else str(latest)
    if given and not re.match(r"best$|hpc$|registry|\w+://", given) and not Path(given).exists():
        raise FileNotFoundError(f"ckpt_path must be a checkpoint or last, got {given}, which does not exist: check it")
    if given or not training or not there or config.trainer.get("fast_dev_run"):
        return given
    if _goes_on(bool(config.get("auto_resume"))):
        return str(newest_whole(run))
    remedy = "last" if latest.is_file() else str(there[0])
    raise ValueError(
        f"trainer.default_root_dir must be a new directory, got {run}, which holds a run: "
        f"add --ckpt_path {remedy} or --auto_resume true to continue it, or choose another"
    )


def _listed(value: Any) -> list[Any]:
    """What a key that takes one or several holds, as a list."""
    return [] if value is None else [*value] if isinstance(value, list) else [value]


def _goes_on(auto_resume: bool) -> bool:
    """Whether a run that is there is to be continued."""
    return auto_resume or any(int(os.environ.get(name, 0)) for name in RESTARTS)


def portable(value: Any, root: str) -> Any:
    """A configuration in which paths below the run directory follow it, when it is given anew."""
    if isinstance(value, dict):
        return {key: item if key == "default_root_dir" else portable(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, root) for item in value]
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return "${trainer.default_root_dir}" + value.removeprefix(root)
    return value


@rank_zero_only
def _tell(line: str) -> None:
    print(line, file=sys.stderr)


@rank_zero_only
def tell_results(trainer: Trainer) -> None:
    """Print the numbers of the callbacks that have some, and where the rest lies."""
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
    if trainer.loggers:
        print(f"curves: tensorboard --logdir {run}")


if __name__ == "__main__":
    main()
