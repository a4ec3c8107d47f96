"""Build models from files whose numbers nobody has checked: never larger than the weights that the file contains."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

Spend = Callable[[str, int], None]  # takes a unit and a count

# A network may register a weight twice, replace it, or have some that it does not save.
SLACK, SPARE_NUMBERS, SPARE_TENSORS = 2, 2**22, 64
MODULES_PER_TENSOR = 16  # containers, activations and the like have no weights of their own; about 2 in DiT and U-Net
_LOCK, _current = threading.Lock(), threading.local()  # the latter with `spend`, None without a limit


@contextmanager
def limited_to(weights: Mapping[str, Tensor], file: str | Path) -> Iterator[None]:
    """Raise ValueError as soon as modules that are built inside have clearly more weights than a file contains.

    A module registers a weight before it initializes it: memory that is too much is reserved for a moment, but never
    used, whatever the class of the module and its arguments. Other threads are not limited.

    Args:
        weights: weights in the file.
        file: path of the file, for the message.
    """
    tensors = SLACK * len(weights) + SPARE_TENSORS
    left = {
        "numbers": SLACK * sum(weight.numel() for weight in weights.values()) + SPARE_NUMBERS,
        "tensors": tensors,
        "modules": MODULES_PER_TENSOR * tensors,
    }

    def spend(unit: str, count: int) -> None:
        left[unit] -= count
        if left[unit] < 0:
            raise ValueError(
                f"the model in {file} must be as large as its {len(weights)} weights, got a description of one with "
                f"many more {unit}: do not use this file, it may be malicious"
            )

    with _LOCK:
        _watch_modules()
    with _spending(spend):
        yield


@contextmanager
def unlimited() -> Iterator[None]:
    """Lift the limit, for classes that may have modules of their own, such as a pretrained network."""
    with _spending(None):
        yield


@contextmanager
def _spending(spend: Spend | None) -> Iterator[None]:
    """Count with `spend` what this thread builds inside."""
    before = getattr(_current, "spend", None)
    _current.spend = spend
    try:
        yield
    finally:
        _current.spend = before


@cache
def _watch_modules() -> None:
    """Count the weights and modules of all modules, once and for good: PyTorch's list of hooks is not thread-safe."""

    def on_tensor(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        spend: Spend | None = getattr(_current, "spend", None)
        if spend is not None and tensor is not None:
            spend("tensors", 1)
            spend("numbers", tensor.numel())

    def on_module(_: nn.Module, name: str, module: nn.Module | None) -> None:
        spend: Spend | None = getattr(_current, "spend", None)
        if spend is not None:
            spend("modules", 1)

    register_module_parameter_registration_hook(on_tensor)
    register_module_buffer_registration_hook(on_tensor)
    register_module_module_registration_hook(on_module)
