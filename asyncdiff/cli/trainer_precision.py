"""Choose the precision of the trainer: `trainer.precision: auto` uses bfloat16 where the processor computes in it."""

from typing import Any, Literal, get_args

import torch
from jsonargparse import ArgumentParser

from asyncdiff.precision import fast_bfloat16

AUTO = "auto"
BFLOAT16 = ("bf16", "bf16-mixed", "bf16-true")
EMULATION = "about 9 times slower than float32"  # measured with textures_dit_async.yaml on a CPU with AVX2 only
HELP = (
    "auto: bf16-mixed on GPUs and CPUs with bfloat16 instructions, 32-true on others. Or a precision of Lightning: "
    "64-true, 32-true, bf16-mixed, bf16-true, 16-mixed and others. Default: 32-true."
)


def accept_auto(parser: ArgumentParser) -> None:
    """Let `trainer.precision` be auto, too."""
    action: Any
    (action,) = (action for action in parser._actions if action.dest == "trainer.precision")
    of_lightning = [value for option in get_args(action._typehint) for value in get_args(option)]
    action._typehint = Literal[AUTO, *of_lightning] | None
    action.help = HELP


def trainer_device(accelerator: Any) -> torch.device:
    """Return the kind of device that the trainer will use; "auto" uses the CPU where there is nothing else."""
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu" if accelerator in ("cpu", "auto") else "cuda")


def choose_precision(precision: Any, accelerator: Any) -> tuple[Any, str]:
    """Return the precision for the trainer, and why auto chose it; empty if the user did.

    Args:
        precision: `trainer.precision`.
        accelerator: `trainer.accelerator`.
    """
    if precision != AUTO:
        return precision, ""
    device = trainer_device(accelerator)
    name = "CPU" if device.type == "cpu" else "GPU"
    if fast_bfloat16(device):
        return "bf16-mixed", f"auto: this {name} has bfloat16 instructions"
    return "32-true", f"auto: this {name} has no bfloat16 instructions"


def emulation_warning(precision: Any, accelerator: Any) -> str:
    """Return a warning for a CPU that must emulate the user's precision; empty if it need not."""
    device = trainer_device(accelerator)
    if precision not in BFLOAT16 or device.type != "cpu" or fast_bfloat16(device):
        return ""
    return f"trainer.precision is {precision}, but this CPU has no bfloat16 instructions: it is {EMULATION}; use auto"
