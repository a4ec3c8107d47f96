"""Marks on the storages of CPU tensors: which device they pretend to be on, pinned memory, and copies on their way."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


def _mark(x: Any, name: str) -> Any:
    """Return a mark of the storage of a tensor; None if it has none, or no memory."""
    if not isinstance(x, Tensor):
        return None
    with torch._C.DisableTorchFunction():
        if x.layout != torch.strided or x.device.type != "cpu":
            return None
        x = getattr(x, "_local_tensor", x)  # of a DTensor
        try:
            return getattr(x.untyped_storage(), name, None)
        except NotImplementedError:  # wrappers have no storage
            return None


def _set_mark(x: Any, name: str, value: Any) -> None:
    with torch._C.DisableTorchFunction():
        for tensor in tensors_of(x):
            tensor = getattr(tensor, "_local_tensor", tensor)
            if tensor.layout == torch.strided and tensor.device.type == "cpu":
                setattr(tensor.untyped_storage(), name, value)


def tensors_of(x: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nested container."""
    return (leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor))


def on_gpu(x: Any) -> bool:
    """Return whether a tensor pretends to be on the GPU."""
    return bool(_mark(x, "on_gpu"))


def put_on_gpu(x: Any, there: bool = True) -> Any:
    """Mark all tensors in a container as being on the GPU, or on the host; return the container."""
    _set_mark(x, "on_gpu", there)
    return x


def is_pinned(x: Any) -> bool:
    """Return whether a tensor is in pinned memory of the host."""
    return bool(_mark(x, "pinned")) and not on_gpu(x)


def pin(x: Any) -> Any:
    """Mark all tensors in a container as being in pinned memory; return the container."""
    _set_mark(x, "pinned", True)
    return x


def arrival(x: Any) -> int:
    """Return the time at which the content of host memory has arrived from the GPU; 0 if nothing is on its way."""
    return _mark(x, "arrival") or 0


def set_arrival(x: Any, time: int) -> None:
    """Mark all tensors in a container as on their way from the GPU."""
    _set_mark(x, "arrival", time)


def device_of(x: Tensor) -> torch.device:
    """Return the device that a tensor pretends to be on."""
    if on_gpu(x):
        return CUDA
    with torch._C.DisableTorchFunction():
        return x.device
