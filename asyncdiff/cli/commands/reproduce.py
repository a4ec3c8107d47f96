"""How pictures were made, as a file beside them: the command, and a layer of YAML for `train.py predict`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from asyncdiff.checkpoints import object_config
from asyncdiff.cli import trusted_packages
from asyncdiff.tasks import Task

RECORD = "predict.yaml"  # beside pictures


def record(
    said: Sequence[str],
    task: Task,
    model: Any,
    *,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    options: Any,
    run: Path,
    checkpoint: Path,
) -> str:
    """The text of the file.

    Args:
        said: the words of `python -m asyncdiff`.
        task: what they asked for.
        model: as it draws.
        seeds: of the pictures.
        labels: as the task took them.
        options: of the command: device, weights, codec.
        run: directory of the run, with its config.yaml.
        checkpoint: that drew.
    """
    lines = ["# These pictures again:", f"#   {shlex.join(['python', '-m', 'asyncdiff', *said])}"]
    if (run / "config.yaml").is_file() and options.weights == "auto":  # `predict` takes what a run would take
        files = ["--config", str(run / "config.yaml"), "--config", RECORD, "--ckpt_path", str(checkpoint)]
        again = shlex.join(["python", "train.py", "predict", *files, *trusted_packages.option()])
        lines += ["# or, with the path of this file in place of its name,", f"#   {again}"]
    layer = {
        "model": {
            "task": object_config.describe(task),
            "sampler": object_config.describe(model.sampler),
            "predict_seeds": [int(seed) for seed in seeds],
            "predict_labels": None if labels is None else [int(label) for label in labels],
            "predict_batch_size": model.predict_batch_size,
        },
        "trainer": _trainer(torch.device(options.device)),
    }
    if options.codec is not None:
        layer["model"]["codec"] = object_config.describe(options.codec)
    return "\n".join(lines) + "\n" + yaml.safe_dump(_plain(layer), sort_keys=False, width=120)


def _trainer(device: torch.device) -> dict[str, Any]:
    """What draws as commands do: one device, in float32."""
    accelerator = "gpu" if device.type == "cuda" else device.type
    devices = 1 if device.index is None else [device.index]
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
    }


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML has a word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
