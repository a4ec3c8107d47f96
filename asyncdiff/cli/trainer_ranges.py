"""Ranges of all numbers of Lightning's Trainer, checked before anything is built. Imports no PyTorch.

Lightning checks some of them when the trainer is built, some when it has run for an epoch, and some never: a negative
`gradient_clip_val` turns training into ascent.
"""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from asyncdiff.checks import at_least, check_seeds, environment_integer

# Processes or workers that one machine can use: files written on a large machine also run on a small one.
MAX_PROCESSES = max(64, 4 * (os.cpu_count() or 1))
# Set by those who start one process per node or more: torchrun, SLURM, LSF, MPI, or the user.
LAUNCHERS = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# The number of batches that a command needs.
BATCHES_OF = {
    "fit": "limit_train_batches",
    "validate": "limit_val_batches",
    "test": "limit_test_batches",
    "predict": "limit_predict_batches",
}


class Range(NamedTuple):
    """Range of a number.

    Attributes:
        minimum: smallest value.
        remedy: what to do instead.
        unlimited: whether -1 is allowed, too: it stands for all or for no limit.
    """

    minimum: int
    remedy: str
    unlimited: bool = False


# Numbers; null stands for the default of those whose type allows it.
NUMBERS = {
    "num_nodes": Range(1, "1 is the default"),
    "fast_dev_run": Range(0, "use true, or a number of batches"),
    "max_epochs": Range(1, "set the number of epochs, or -1 for no limit", unlimited=True),
    "min_epochs": Range(0, "omit it for no minimum"),
    "max_steps": Range(1, "set the number of optimizer steps, or -1 for no limit", unlimited=True),
    "min_steps": Range(0, "omit it for no minimum"),
    "check_val_every_n_epoch": Range(1, "use null if val_check_interval counts batches across epochs"),
    "num_sanity_val_steps": Range(0, "use 0 for none, or -1 for all batches", unlimited=True),
    "log_every_n_steps": Range(0, "50 is the default, 0 logs nothing"),
    "accumulate_grad_batches": Range(1, "1 does not accumulate"),
    "gradient_clip_val": Range(0, "1.0 is common, 0 or null disables clipping"),
    "reload_dataloaders_every_n_epochs": Range(0, "0 is the default and never reloads"),
}
# Numbers of batches or shares of all, each with its remedy.
BATCHES = {
    "limit_train_batches": "omit it to use all",
    "limit_val_batches": "omit it to use all, or use 0 for no validation",
    "limit_test_batches": "omit it to use all",
    "limit_predict_batches": "omit it to use all",
    "overfit_batches": "use 0 to train on all",
    "val_check_interval": "use 1000 or 0.5, for example; limit_val_batches: 0 turns validation off",
}
TIMES = ("max_time", "val_check_interval")
# Numbers that Lightning's loggers pass on to TensorBoard, without a type.
OF_LOGGERS = {
    "max_queue": "10 events is the default",
    "flush_secs": "120 seconds is the default",
}


def check_trainer(trainer: Any, command: str, *, on_cpu: bool) -> None:
    """Raise ValueError if an argument of the Trainer is out of range.

    Args:
        trainer: arguments of the Trainer, of valid types, as a mapping or a parser's namespace.
        command: fit, validate, test or predict.
        on_cpu: whether the Trainer will run on the CPU, where devices are processes.
    """
    for key, (minimum, remedy, unlimited) in NUMBERS.items():
        value = trainer.get(key)
        if value is not None and not value >= minimum and not (unlimited and value == -1):  # also rejects NaN
            also = "-1 or " if unlimited else ""
            raise ValueError(f"trainer.{key} must be {also}at least {minimum}, got {value}: {remedy}")
    for key in TIMES:
        value = trainer.get(key)
        if isinstance(value, (str, Mapping, timedelta)) and not _is_time(value):
            raise ValueError(f"trainer.{key} must be a positive time such as 00:12:00:00 (12 hours), got {value}")
    for key, remedy in BATCHES.items():
        value = trainer.get(key)
        if isinstance(value, (int, float)):
            needed = key in (BATCHES_OF[command], "val_check_interval")
            _check_batches(f"trainer.{key}", value, needed=needed, remedy=remedy)
    _check_devices(trainer.get("devices", "auto"), on_cpu=on_cpu)
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        check_logger(logger)
    nodes = trainer.get("num_nodes", 1)
    if nodes > 1 and not trainer.get("plugins") and not any(os.environ.get(name) for name in LAUNCHERS):
        raise ValueError(
            f"trainer.num_nodes must be 1 without a launcher, got {nodes}: start the command on every node with "
            "torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )


def check_logger(logger: Any) -> None:
    """Raise ValueError if a number of a logger, written as class_path and init_args, is out of range."""
    arguments = logger.get("init_args", {}) if hasattr(logger, "get") else {}
    for name in OF_LOGGERS.keys() & arguments.keys():
        if arguments[name] is not None:
            at_least(f"trainer.logger.{name}", arguments[name], 1, OF_LOGGERS[name])


def check_seed_everything(seed: Any) -> None:
    """Raise ValueError unless `seed_everything` is a seed, true for that of the environment, or false for none."""
    if seed is True:
        check_seeds("PL_GLOBAL_SEED", [environment_integer("PL_GLOBAL_SEED")])  # which Lightning reads
    elif seed is not False:
        check_seeds("seed_everything", [seed])


def _check_devices(devices: Any, *, on_cpu: bool) -> None:
    """Raise ValueError unless `devices` are auto, all (-1), a number of devices, or different indices."""
    if devices == "auto":
        return
    indices = devices
    if isinstance(devices, str):
        parts = [part.strip() for part in devices.strip().removesuffix(",").split(",")]
        numbers = [int(part) if re.fullmatch(r"-?[0-9]{1,6}", part) else None for part in parts]
        indices = numbers[0] if "," not in devices else numbers
    if on_cpu:
        if isinstance(indices, Sequence) or indices is None or not 1 <= indices <= MAX_PROCESSES:
            raise ValueError(
                f"trainer.devices must lie in [1, {MAX_PROCESSES}] on the CPU, where they are processes, got "
                f"{devices}: use 1"
            )
    elif isinstance(indices, Sequence):
        if not indices or len({*indices}) < len(indices) or not all(_is_index(index) for index in indices):
            raise ValueError(
                f"trainer.devices must be different indices of devices, got {devices}: use [0], for example"
            )
    elif indices is None or (indices != -1 and not 1 <= indices <= MAX_PROCESSES):
        raise ValueError(
            f"trainer.devices must be auto, -1 for all, a number of devices or their indices, got {devices}: use auto"
        )


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < MAX_PROCESSES


def _check_batches(name: str, value: float, *, needed: bool, remedy: str) -> None:
    """Raise ValueError unless `value` is a number of batches or a share of all, and not 0 if it is needed."""
    if not (0 <= value <= 1 or (value > 1 and value % 1 == 0)):  # also rejects NaN and infinity
        raise ValueError(f"{name} must be a number of batches or a share in [0, 1], got {value}: {remedy}")
    if needed and value == 0:
        raise ValueError(f"{name} must be above 0, or nothing would happen, got {value}: {remedy}")


def _is_time(value: str | Mapping[str, Any] | timedelta) -> bool:
    """Return whether this is a positive time, as the Trainer reads it: DD:HH:MM:SS, or a number of each unit."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})", value.strip())
        return match is not None and any(int(part) for part in match.groups())
    if isinstance(value, timedelta):
        return value > timedelta()
    try:
        return timedelta(**value) > timedelta()
    except (OverflowError, TypeError, ValueError):
        return False
