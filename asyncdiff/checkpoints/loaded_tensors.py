"""Check tensors that were read from a file before anything is computed from them."""

from collections.abc import Container, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OTHER_WEIGHTS = "use another checkpoint, or other weights of this one (raw or ema)"


def check_tensors(tensors: Mapping[Any, Any], file: str | Path, remedy: str, *, buffers: Container[str] = ()) -> None:
    """Raise ValueError unless the tensors hold only finite numbers, each stored in the file.

    A tensor takes no longer than to read it once from memory. Values that are not tensors are left to the caller.

    Args:
        tensors: tensors by name.
        file: path of the file that they were read from.
        remedy: end of the error messages: what to do instead of using this file.
        buffers: names of those that may hold infinities, as attention masks and tables of logSNR do.
    """
    check_stored(tensors, file, remedy)
    numbers = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    broken = [name for name, tensor in numbers.items() if not _is_valid(tensor, infinite=name in buffers)]
    if broken:
        first = numbers[broken[0]]
        count = int((~_as_float(first).isfinite()).sum())
        more = f" ({len(broken) - 1} more of {len(numbers)} tensors are like it)" if len(broken) > 1 else ""
        raise ValueError(
            f"{broken[0]} must hold finite numbers, got NaN or infinity in {count:,} of its {first.numel():,} "
            f"values{more} in {file}: {remedy}"
        )


def check_stored(tensors: Mapping[Any, Any], file: str | Path, remedy: str) -> None:
    """Raise ValueError unless all numbers of the tensors are stored in the file; see `check_tensors`."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and not _is_stored(tensor):
            raise ValueError(
                f"{name} must be stored number by number, got a tensor of shape {tuple(tensor.shape)} that {file} "
                f"describes without holding its numbers: {remedy}"
            )


def check_trained_tensors(checkpoint: Mapping[str, Any], file: str | Path, remedy: str, *, resumed: bool) -> None:
    """Raise ValueError unless what a checkpoint has beside the raw weights, such as EMA, is finite and stored.

    Args:
        checkpoint: contents of the file.
        file: path of the file.
        remedy: end of the error messages.
        resumed: also check the state of the optimizers, which training continues from.
    """
    groups: dict[str, Any] = {
        f"ema.{decay}.": entry.get("weights") for decay, entry in checkpoint.get("ema", {}).items()
    }
    for optimizer in checkpoint.get("optimizer_states", ()) if resumed else ():
        groups |= {f"optimizer.{key}.": state for key, state in optimizer.get("state", {}).items()}
    named = ({f"{prefix}{name}": value for name, value in (group or {}).items()} for prefix, group in groups.items())
    check_tensors(dict(chain.from_iterable(group.items() for group in named)), file, remedy)


def _is_stored(tensor: Tensor) -> bool:
    """Return whether a tensor is an array whose numbers are all in memory: not expanded, sparse or without data."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type == "meta":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_valid(tensor: Tensor, *, infinite: bool) -> bool:
    """Return whether a tensor has no NaN, and no infinity unless it may have some."""
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # PyTorch computes nothing with 8-bit floats, and converts them slowly
        values = torch.arange(256, dtype=torch.uint8).view(tensor.dtype).float()
        invalid = (values.isnan() if infinite else ~values.isfinite()).nonzero().flatten()
        return not any(bool((tensor.view(torch.uint8) == byte).any()) for byte in invalid.tolist())
    # The minimum and maximum are NaN if any value is; several times as fast as isfinite().
    bounds = torch.stack(torch.aminmax(_as_float(tensor)))
    return bool(not bounds.isnan().any() if infinite else bounds.isfinite().all())


def _as_float(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor as real floating-point numbers that PyTorch computes with."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.element_size() == 1 else tensor
