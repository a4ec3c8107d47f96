"""Record how images were generated: the command line, and a YAML layer for `train.py predict`."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from asyncdiff.checkpoints import object_config
from asyncdiff.cli import trusted_packages
from asyncdiff.tasks import Task

RECORD = "predict.yaml"  # written next to the images


def format_record(
    argv: Sequence[str],
    task: Task,
    model: Any,
    *,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    options: Any,
    run: Path,
    checkpoint: Path,
) -> str:
    """Return YAML text that reproduces the images.

    Args:
        argv: arguments of `python -m asyncdiff` that generated the images.
        task: task built from these arguments.
        model: the model as configured for sampling.
        seeds: random seeds of the images.
        labels: class labels passed to the task, None for its default.
        options: parsed options of the command; device, weights and codec are used.
        run: run directory, whose config.yaml is used if it exists.
        checkpoint: checkpoint of the model.

    Returns:
        YAML layer for `train.py predict`, with the equivalent commands in comments.
    """
    lines = ["# Commands that reproduce these images:", f"#   {shlex.join(['python', '-m', 'asyncdiff', *argv])}"]
    if (run / "config.yaml").is_file() and options.weights == "auto":  # `predict` always chooses weights as `auto` does
        files = ["--config", str(run / "config.yaml"), "--config", RECORD, "--ckpt_path", str(checkpoint)]
        predict = shlex.join(["python", "train.py", "predict", *files, *trusted_packages.option_argv()])
        lines += [f"# or, with {RECORD} replaced by the path of this file:", f"#   {predict}"]
    layer = {
        "model": {
            "sampler": object_config.describe(model.sampler),
            "predict": {
                "task": object_config.describe(task),
                "seeds": [int(seed) for seed in seeds],
                "labels": None if labels is None else [int(label) for label in labels],
                "batch_size": model.batch_size,
            },
        },
        "trainer": _trainer(torch.device(options.device)),
    }
    if options.codec is not None:
        layer["model"]["codec"] = object_config.describe(options.codec)
    # Through JSON, which has lists in place of tuples, as plain YAML does.
    return "\n".join(lines) + "\n" + yaml.safe_dump(json.loads(json.dumps(layer)), sort_keys=False, width=120)


def _trainer(device: torch.device) -> dict[str, Any]:
    """Return trainer settings that match the commands: one device, float32."""
    accelerator = "gpu" if device.type == "cuda" else device.type
    devices = 1 if device.index is None else [device.index]
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
    }
