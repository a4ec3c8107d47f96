"""Every number in files and on command lines has a range: values outside are refused in one line that names the key.

The numbers are found by `numeric_keys` in signatures and parsers. Each is set, alone in a valid configuration, to -1,
0, NaN, infinity, null, a string, true and integers of more than 64 bits.
"""

import math
import typing
from types import SimpleNamespace
from typing import Any

import numeric_keys
import numpy as np
import pytest
import torch
from numeric_keys import VALUES, Key

from asyncdiff.checks import (
    MAX_SEED,
    at_least,
    below_one,
    check_number,
    check_seeds,
    environment_integer,
    finite,
    positive,
    within,
)
from asyncdiff.cli.commands.shared.options import choose_device
from asyncdiff.cli.errors.null_values import is_nullable
from asyncdiff.cli.trainer_ranges import MAX_PROCESSES, check_seed_everything, check_trainer

# Arguments that may be 0, by their meaning; all other counts and sizes start at 1, all other factors above 0.
ZERO = {
    **dict.fromkeys(("seed", "first_seed", "mask_seed", "seeds", "labels", "grid", "maps"), "the first of its kind"),
    **dict.fromkeys(
        (
            "DiT.classes",
            "UNet.classes",
            "Streamed.classes",
            "workers",
            "margin",
            "warmup_steps",
            "weight_decay",
            "epochs",
            "level_values",
        ),
        "none",
    ),
    **dict.fromkeys(
        ("dropout", "label_dropout", "probability", "boxes", "stochasticity", "betas", "decay"), "in [0, 1]"
    ),
    **dict.fromkeys(("share", "skipped", "lead", "low", "high", "spread", "overlap", "attention"), "the lowest"),
    **dict.fromkeys(("strength", "uncertainty_weight", "stop_after_bad_steps", "refresh_rate", "mlp_ratio"), "off"),
    **dict.fromkeys(("bottom", "left", "right"), "no pixels"),
    **dict.fromkeys(
        ("every_n_steps", "every_n_train_steps", "every_n_epochs", "save_top_k", "version"), "at the end only"
    ),
    **dict.fromkeys(("ClassifierFree.scale", "Shared.loc", "shift", "fast_dev_run"), "without"),
    **dict.fromkeys(("min_epochs", "min_steps", "log_every_n_steps", "gradient_clip_val", "overfit_batches"), "off"),
    **dict.fromkeys(("limit_val_batches", "limit_test_batches", "limit_predict_batches"), "none"),
    "reload_dataloaders_every_n_epochs": "never",
}
# Arguments that may be negative.
NEGATIVE = {
    **dict.fromkeys(("Sigmoid.bias", "LogitNormalProgress.loc", "LogitNormalTruncated.loc", "shift"), "of either sign"),
    **dict.fromkeys(("DiffusersAutoencoder.scale", "TinyAutoencoder.scale"), "only 0 cannot be undone"),
    **dict.fromkeys(("save_top_k", "num_sanity_val_steps"), "-1 means all"),
    **dict.fromkeys(("max_epochs", "max_steps"), "-1 means no limit"),
    "TensorBoardLogger.version": "a part of a name",
}
ZERO |= {
    name: why for name, why in NEGATIVE.items() if not name.startswith("max_") and not name.endswith("coder.scale")
}
INFINITE = {"gradient_clip_val": "clips nothing"}
ROOMS = (
    *(f"asyncdiff.{room}" for room in ("callbacks", "denoising", "evaluation", "latents", "networks", "noise")),
    *(f"asyncdiff.{room}" for room in ("sampling", "tasks", "training")),
    *("datamodules", "lightning"),
)


def has(table: dict[str, str], key: Key) -> bool:
    return str(key) in table or key.name.rpartition(".")[2] in table


def may_be_accepted(key: Key, value: Any) -> bool:
    """Return whether a value has a meaning."""
    kinds = set(leaves(key.hint))
    if value is None:
        return key.nullable
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, str):
        return str in kinds
    if not math.isfinite(value):
        return value == math.inf and has(INFINITE, key)
    if value <= 0:
        return has(NEGATIVE if value else ZERO, key)
    return float in kinds or not of_this_project(key)


def leaves(hint: Any) -> list[Any]:
    parts = typing.get_args(hint)
    return [leaf for part in parts for leaf in leaves(part)] if parts else [hint]


def of_this_project(key: Key) -> bool:
    return not key.kind.__module__.startswith("lightning")


def first(value: Any) -> Any:
    return first(value[0]) if isinstance(value, list) else value


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("room", ROOMS)
def test_numbers_of_classes_have_ranges(room, half, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = [kind for kind in numeric_keys.classes() if f"{kind.__module__}.".startswith(f"{room}.")]
    keys = [key for kind in kinds for key in numeric_keys.keys(kind)][half::2]
    accepted = set()
    for key in keys:
        numeric_keys.build(key.kind, {})
        for value in (variant for one in VALUES.values() for variant in key.variants(one)):
            if not (message := refusal(key, value)):
                assert may_be_accepted(key, first(value)), f"{key}: {value} is accepted"
                accepted.add((str(key), first(value)))
            elif "\n" in message or key.name.rpartition(".")[2] not in message:
                pytest.fail(f"{key}: {value} is not reported in one line with its name: {message}")
    for key in keys:
        assert not has(ZERO, key) or (str(key), 0) in accepted, f"{key} may be 0"
        assert not has(NEGATIVE, key) or (str(key), -1) in accepted, f"{key} may be -1"
    assert keys
    assert list(tmp_path.iterdir()) == []


def refusal(key: Key, value: Any) -> str:
    """Return the message that refuses a value; empty if an object is built that has it."""
    try:
        built = numeric_keys.build(key.kind, {key.name: value})
    except Exception as error:
        return numeric_keys.reason(key, value, error) or f"traceback of {error!r}"
    if not of_this_project(key) or value is None:
        return ""
    stored = attribute(built, key.name)
    expected = [value] if isinstance(value, list) else [value, float(value)]  # 2**64 is a float where one is wanted
    same = (list(stored) if isinstance(value, list) else stored) in expected
    return "" if same else f"not refused, but it becomes {stored}"


def attribute(built: Any, name: str) -> Any:
    for part in name.split("."):
        built = getattr(built, part)
    return built


def test_no_class_is_left_out():
    """A change that hides numbers from these tests is noticed."""
    kinds = numeric_keys.classes()
    assert all(f"{kind.__module__}.".startswith(tuple(f"{room}." for room in ROOMS)) for kind in kinds)
    keys = [key for kind in kinds for key in numeric_keys.keys(kind)]
    cases = sum(1 for key in keys for value in VALUES.values() for _ in key.variants(value))
    options = sum(len(numeric_keys.command_numbers(command)) for command in numeric_keys.COMMANDS)
    assert len(keys) >= 265, len(keys)
    assert cases >= 2700, cases
    assert options >= 85, options


# Commands

# Options that may be 0.
ZERO_OPTIONS = {
    **dict.fromkeys(("--seed", "--mask_seed"), "the first"),
    **dict.fromkeys(("--guidance", "--input_guidance", "--margin", "--overlap", "--examples"), "none"),
    **dict.fromkeys(("--top", "--bottom", "--left", "--right"), "no pixels"),
    **dict.fromkeys(("--port", "--cell", "--classes"), "any, the first, none"),
}


@pytest.mark.parametrize("command", numeric_keys.COMMANDS)
def test_numbers_of_commands_have_ranges(command, expect_error, tmp_path, monkeypatch):
    """Wrong numbers are refused before files are looked for; with others, files are missing."""
    monkeypatch.chdir(tmp_path)
    argv = [*command.split(), *numeric_keys.COMMANDS[command].split()]
    for option, action in numeric_keys.command_numbers(command).items():
        names = (f"{option} ", f"{option}:", f"{option[2:]} ")
        for value in VALUES.values():
            text = "null" if value is None else str(value).lower()
            message = expect_error(*argv, f"{option}={text}")
            refused = message.startswith(names)
            case = f"{command} {option}={text}: {message}"
            of_other_type = isinstance(value, bool | str)
            if value is None:
                assert refused != is_nullable(action), case
            elif of_other_type or not math.isfinite(value) or value < 0 or (not value and option not in ZERO_OPTIONS):
                assert refused, case
            else:
                assert refused or "nowhere" in message, case
    assert list(tmp_path.iterdir()) == []


# The checks themselves


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (lambda value: at_least("x", value, 1, "use 2"), [0, -1, math.nan, math.inf, -math.inf, 2**63, 10**30]),
        (lambda value: at_least("x", value, 1, "use 2", 5), [0, 6, math.nan, math.inf]),
        (lambda value: positive("x", value, "use 2"), [0, -1.5, math.nan, math.inf, 2**63]),
        (lambda value: within("x", value, 0, 4, "use 2"), [-0.1, 4.1, math.nan, math.inf, -math.inf, 10**30]),
        (lambda value: below_one("x", value / 4, "use 2"), [-1, 4, math.nan, math.inf]),
        (lambda value: finite("x", value, "use 2"), [math.nan, math.inf, -math.inf, 2**63]),
        (lambda value: check_seeds("x", [0, value]), [-1, 2**32, 2**64, 1.0, math.nan]),
    ],
)
def test_checks_refuse_what_is_no_number_in_range(check, wrong):
    check(2)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^x must [^:]*: use "):
            check(value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2), torch.tensor(2.0)], ids=repr)
def test_checks_accept_numbers_of_every_library(value):
    at_least("x", value, 1, "use 2", 5)
    positive("x", value, "use 2")
    within("x", value, 0, 4, "use 2")
    with pytest.raises(ValueError, match="^x must be at least 3, got "):
        at_least("x", value, 3, "use 4")


@pytest.mark.parametrize("value", [None, True, "2", np.str_("2"), [2], 2j, torch.ones(2)])
def test_checks_refuse_other_types(value):
    with pytest.raises(ValueError, match="^x must be a number, got .*: use 2$"):
        check_number("x", value, "use 2")


def test_all_seeds_have_one_range():
    check_seeds("seeds", [0, MAX_SEED])
    check_seeds("seeds", range(MAX_SEED + 1))
    for seeds in (range(MAX_SEED + 2), range(-1, 3), [True], [None], ["3"]):
        with pytest.raises(ValueError, match="seeds must be an integer from 0 to 4294967295, got "):
            check_seeds("seeds", seeds)
    for seed in (0, MAX_SEED, True, False):
        check_seed_everything(seed)
    for seed in (-1, 2**32, 2**64):
        with pytest.raises(ValueError, match=f"seed_everything must be an integer from 0 to 4294967295, got {seed}"):
            check_seed_everything(seed)


@pytest.mark.parametrize("seed", ["many", "-1", str(2**32)])
def test_a_seed_of_the_environment_is_checked(seed, monkeypatch):
    check_seed_everything(True)
    monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    with pytest.raises(ValueError, match=f"PL_GLOBAL_SEED must be .*, got {seed}: "):
        check_seed_everything(True)


def test_numbers_in_the_environment_are_integers(monkeypatch):
    assert environment_integer("ASYNCDIFF_TEST") == 0
    for text, number in (("", 0), ("0", 0), ("12", 12)):
        monkeypatch.setenv("ASYNCDIFF_TEST", text)
        assert environment_integer("ASYNCDIFF_TEST") == number
    for text in ("-1", "many", "1.0", "nan", "٣", "9" * 30):
        monkeypatch.setenv("ASYNCDIFF_TEST", text)
        with pytest.raises(ValueError, match=f"ASYNCDIFF_TEST must be a non-negative integer, got {text}: unset it"):
            environment_integer("ASYNCDIFF_TEST")


# What the Trainer's numbers mean together with the command and the machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_clip_val": -1.0}, "gradient_clip_val must be at least 0, got -1.0: 1.0 is common"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1, got 0: 1 does not accumulate"),
        ({"max_steps": 0}, "max_steps must be -1 or at least 1, got 0: set the number of optimizer steps"),
        ({"max_steps": -2}, "max_steps must be -1 or at least 1, got -2"),
        ({"val_check_interval": 0}, "val_check_interval must be above 0, or nothing would happen, got 0"),
        (
            {"val_check_interval": 1.5},
            r"val_check_interval must be a number of batches or a share in \[0, 1\], got 1.5",
        ),
        ({"limit_train_batches": 0}, "limit_train_batches must be above 0, or nothing would happen, got 0"),
        ({"limit_val_batches": -0.5}, r"limit_val_batches must be a number of batches or a share in \[0, 1\]"),
        ({"max_time": "many"}, "max_time must be a positive time such as 00:12:00:00"),
        ({"max_time": {"hours": -1}}, "max_time must be a positive time"),
        ({"max_time": {"days": 10**30}}, "max_time must be a positive time"),
        ({"val_check_interval": "00:00:00:00"}, "val_check_interval must be a positive time"),
        ({"devices": "x"}, "devices must be auto, -1 for all, a number of devices or their indices, got x"),
        ({"devices": 0}, "devices must be auto, -1 for all, a number of devices or their indices, got 0"),
        ({"devices": []}, r"devices must be different indices of devices, got \[\]"),
        ({"devices": "0,0"}, "devices must be different indices of devices, got 0,0"),
        ({"devices": [0, -1]}, "devices must be different indices of devices"),
        ({"devices": 10**30}, "devices must be auto"),
        ({"num_nodes": 3}, "num_nodes must be 1 without a launcher, got 3: start the command on every node"),
        ({"num_nodes": 0}, "num_nodes must be at least 1, got 0"),
    ],
)
def test_arguments_of_the_trainer_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^trainer.{message}"):
        check_trainer(arguments, "fit", on_cpu=False)


@pytest.mark.parametrize("devices", ["x", [], [0], "0,1", -1, "-1", 0, MAX_PROCESSES + 1])
def test_devices_of_the_cpu_are_a_number_of_processes(devices):
    for number in ("auto", 1, "2", MAX_PROCESSES):
        check_trainer({"devices": number}, "fit", on_cpu=True)
    with pytest.raises(ValueError, match=rf"devices must lie in \[1, {MAX_PROCESSES}\] on the CPU"):
        check_trainer({"devices": devices}, "fit", on_cpu=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"devices": -1, "max_steps": -1, "max_epochs": None, "val_check_interval": 0.25, "limit_val_batches": 0},
        {"devices": [0, 1], "gradient_clip_val": None, "limit_train_batches": 1.0, "num_sanity_val_steps": -1},
        {"devices": "0,1", "gradient_clip_val": math.inf, "max_time": "01:00:00:00", "fast_dev_run": True},
        {"devices": "3,", "val_check_interval": {"minutes": 30}, "limit_train_batches": 2.0, "limit_test_batches": 0},
    ],
)
def test_arguments_with_a_meaning_are_accepted(arguments):
    check_trainer(arguments, "fit", on_cpu=False)


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_a_command_without_batches_says_so(command, split):
    check_trainer({f"limit_{split}_batches": 0}, "fit", on_cpu=True)
    with pytest.raises(ValueError, match=f"limit_{split}_batches must be above 0, or nothing would happen"):
        check_trainer({f"limit_{split}_batches": 0}, command, on_cpu=True)


@pytest.mark.parametrize("name", ["MASTER_ADDR", "SLURM_NTASKS"])
def test_several_nodes_need_a_launcher(name, monkeypatch):
    monkeypatch.setenv(name, "4")
    check_trainer({"num_nodes": 3}, "fit", on_cpu=True)


# Devices


@pytest.mark.parametrize("device", ["meta", "cuda:99", "cuda:-1", "cpu:1", "cpu:00", "cpu:٠", "cuda:" + "9" * 5000, ""])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(ValueError, match=f"--device {device} is not available on this machine: use cpu"):
        choose_device(SimpleNamespace(device=device))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_cpu_is_a_device(device):
    choose_device(SimpleNamespace(device=device))
    assert torch.device(device).type == "cpu"
