"""Record how images were generated: the command line, and a YAML layer for `train.py predict`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import yaml

from asyncdiff.checkpoints import object_config
from asyncdiff.cli import trusted_packages
from asyncdiff.foreign_text import MAX_NOTE, shell_line, visible
from asyncdiff.model import DiffusionModel

if TYPE_CHECKING:
    from asyncdiff.cli.commands.image_commands import DrawArguments

RECORD = "predict.yaml"  # written next to the images


def format_record(
    argv: Sequence[str], arguments: "DrawArguments", model: DiffusionModel, notes: Sequence[str] = ()
) -> str:
    """Return YAML text that reproduces the images.

    Args:
        argv: arguments of `python -m asyncdiff` that generated the images.
        arguments: the arguments, parsed and checked.
        model: the model as configured for sampling.
        notes: one line per photo: how it was resized and cropped, and its mask.

    Returns:
        YAML layer for `train.py predict`, with the equivalent commands in comments.
    """
    options, config, labels = arguments.options, arguments.run / "config.yaml", arguments.labels
    precision = model.precision or "float32"
    if options.precision is None:  # on another device, the default may be another
        argv = [*argv, "--precision", precision]
    lines = ["# Commands that reproduce these images:", f"#   {shell_line(['python', '-m', 'asyncdiff', *argv])}"]
    if config.is_file() and options.weights == "auto":  # `predict` always chooses weights as `auto` does
        files = ["--config", str(config), "--config", RECORD, "--ckpt_path", str(arguments.checkpoint)]
        predict = shell_line(["python", "train.py", "predict", *files, *trusted_packages.option_argv()])
        lines += [f"# or, with {RECORD} replaced by the path of this file:", f"#   {predict}"]
        if options.device.startswith("cuda"):
            lines.append("# The trainer leaves TF32 as PyTorch has it: its images are equal up to rounding.")
    if notes:
        lines += ["# Photos:", *(f"#   {visible(note, MAX_NOTE)}" for note in notes)]
    device = torch.device(options.device)
    layer: dict[str, Any] = {
        "model": {
            "sampler": object_config.describe(model.sampler),
            "predict": {
                "task": object_config.describe(arguments.task),
                "seeds": arguments.seeds,
                "labels": labels,
                "batch_size": options.batch_size,
            },
        },
        "trainer": {  # as in the commands: one device
            "accelerator": "gpu" if device.type == "cuda" else device.type,
            "devices": 1 if device.index is None else [device.index],
            "num_nodes": 1,
            "strategy": "auto",
            "precision": "bf16-mixed" if precision == "bf16" else "32-true",
        },
    }
    if options.codec is not None:
        layer["model"]["codec"] = object_config.describe(options.codec)
    # Through JSON, which has lists in place of tuples, as plain YAML does.
    return "\n".join(lines) + "\n" + yaml.safe_dump(json.loads(json.dumps(layer)), sort_keys=False, width=120)
