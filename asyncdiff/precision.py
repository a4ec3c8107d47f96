"""Precisions of computation: which exist, which a device has in hardware, and the context that computes in one."""

import functools
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:  # commands use the names before PyTorch is imported
    import torch

Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
AMPERE = (8, 0)  # first compute capability with TF32 and bfloat16 in hardware
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # instructions of x86, then of ARM

T = TypeVar("T")


@contextmanager
def computing_in(precision: Precision, device: "torch.device | str") -> Iterator[None]:
    """Compute in a precision within the context, and restore all settings afterwards.

    Autocast is a setting of the thread, TF32 one of the process: threads should not use different precisions at the
    same time. Contexts can be nested; the innermost one holds. Autocast converts every weight once until the outermost
    context ends: weights must not change in between.

    Args:
        precision: "float32" multiplies matrices and convolves in full float32, without autocast; "tf32" rounds their
            inputs to 10 bits on GPUs; "bf16" is autocast to bfloat16, with TF32 for what stays float32.
        device: device of the tensors.

    Yields:
        Nothing.
    """
    import torch

    kind, before = torch.device(device).type, _tf32_settings()
    _set_tf32(_known(precision) != "float32" and kind == "cuda")
    try:
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        _restore_tf32(before)


def full_float32(device: "torch.device | str") -> AbstractContextManager[None]:
    """Return a context of float32 without TF32 and autocast, for numbers that are compared with those of others."""
    return computing_in("float32", device)


def fast_bfloat16(device: "torch.device | str") -> bool:
    """Return whether a device multiplies bfloat16 matrices in hardware; others emulate it, CPUs about 9 times slower.

    True for GPUs of compute capability 8 and more, x86 CPUs with AVX512_BF16 or AMX, and ARM CPUs with BF16.
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        return _cpu_has_bfloat16()
    return device.type == "cuda" and _is_ampere(device)


def auto_precision(device: "torch.device | str") -> Precision:
    """Return "bf16" for a device that has it in hardware, else "float32"."""
    return "bf16" if fast_bfloat16(device) else "float32"


def precision_of_run(trained: str | None, device: "torch.device | str") -> Precision:
    """Return the precision in which a run's model draws on a device.

    Args:
        trained: `trainer.precision` of the run, such as "bf16-mixed"; None if it is not recorded.
        device: device of the model.

    Returns:
        "bf16" if the run trained in 16 bits and the device has bfloat16 in hardware, else "float32".
    """
    return auto_precision(device) if "16" in (trained or "") else "float32"


def check_precision(name: str, precision: str, device: "torch.device | str") -> None:
    """Raise ValueError, naming the argument `name`, for a precision that there is not, or that a device lacks."""
    import torch

    device = torch.device(device)
    if _known(precision) == "tf32" and not (device.type == "cuda" and _is_ampere(device)):
        raise ValueError(f"{name} tf32 needs an NVIDIA GPU of the year 2020 or later, got {device}: use float32")


def emulation_warning(name: str, precision: str, device: "torch.device | str") -> str:
    """Return a warning, naming the argument `name`, if a device emulates a precision; else an empty text."""
    if precision != "bf16" or fast_bfloat16(device):
        return ""
    return f"{name} is bf16, which {device} emulates: float32 is several times faster and exact"


def each_within(context: Callable[[], AbstractContextManager[Any]], items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator, each computed within a new context, which ends before the item is yielded.

    A generator must not hold a context while its caller runs: the caller would compute in it, too.
    """
    while True:
        with context():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def _known(precision: str) -> str:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}: use float32")
    return precision


@functools.cache
def _cpu_has_bfloat16() -> bool:
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return any(capabilities().get(name, False) for name in BFLOAT16)
    if platform.machine().lower() not in ("x86_64", "amd64"):  # PyTorch 2.8 reports those of x86 only
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _is_ampere(device: "torch.device") -> bool:
    import torch

    try:
        return torch.cuda.get_device_capability(device) >= AMPERE
    except (AssertionError, RuntimeError):  # no such GPU, or no driver
        return False


def _tf32_settings() -> tuple[Any, ...]:
    """Return the settings of TF32 as they are.

    PyTorch 2.9 has new settings beside the old ones. Reading an old one raises an error where a new one was set to
    something else, writing never does: the new ones are read, and both are written.
    """
    import torch

    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32, []
    parts = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    matmul, on_cpu, convolutions, _ = (part.fp32_precision for part in parts)
    old = "medium" if on_cpu == "bf16" else "high" if matmul == "tf32" else "highest"
    return old, convolutions == "tf32", [(part, part.fp32_precision) for part in parts]


def _set_tf32(allowed: bool) -> None:
    import torch

    backends: Any = torch.backends
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    backends.cudnn.allow_tf32 = allowed
    if hasattr(backends, "fp32_precision"):  # without it, the old setting leaves a global one in force
        backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"


def _restore_tf32(settings: tuple[Any, ...]) -> None:
    import torch

    matmul, convolutions, new = settings
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    for part, value in new:
        part.fp32_precision = value
