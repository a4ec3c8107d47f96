"""Build models from files whose numbers nobody has checked: never larger than the weights that the file contains."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

# A network may register a weight twice, replace it, or have some that it does not save.
SLACK, SPARE_NUMBERS, SPARE_TENSORS = 2, 2**22, 64
MODULES_PER_TENSOR = 16  # containers, activations and the like have no weights of their own; about 2 in DiT and U-Net


@contextmanager
def limited_to(weights: Mapping[str, Tensor], file: str | Path) -> Iterator[None]:
    """Raise ValueError as soon as modules that are built inside have clearly more weights than a file contains.

    A module registers a weight before it initializes it: memory that is too much is reserved for a moment, but never
    used, whatever the class of the module and its arguments.

    Args:
        weights: weights in the file.
        file: path of the file, for the message.
    """
    thread = threading.get_ident()
    tensors = SLACK * len(weights) + SPARE_TENSORS
    left = {
        "numbers": SLACK * sum(weight.numel() for weight in weights.values()) + SPARE_NUMBERS,
        "tensors": tensors,
        "modules": MODULES_PER_TENSOR * tensors,
    }

    def spend(unit: str, count: int) -> None:
        if threading.get_ident() != thread:
            return
        left[unit] -= count
        if left[unit] < 0:
            raise ValueError(
                f"the model in {file} must be as large as its {len(weights)} weights, got a description of one with "
                f"many more {unit}: do not use this file, it may be malicious"
            )

    def on_tensor(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            spend("tensors", 1)
            spend("numbers", tensor.numel())

    def on_module(_: nn.Module, name: str, module: nn.Module | None) -> None:
        spend("modules", 1)

    with ExitStack() as stack:
        stack.enter_context(register_module_parameter_registration_hook(on_tensor))
        stack.enter_context(register_module_buffer_registration_hook(on_tensor))
        stack.enter_context(register_module_module_registration_hook(on_module))
        yield
