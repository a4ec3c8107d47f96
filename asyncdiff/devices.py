"""Move values between host and device without making the host wait, so that it can run ahead of a GPU.

A copy from pageable memory, `.item()`, `.cpu()` and `torch.tensor(..., device="cuda")` stop the host until the device
has finished all earlier work. The device is then idle until the next kernels are launched.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Return `x` on a device; a copy from the host to a GPU goes through pinned memory, so that nothing waits.

    Args:
        x: tensor on any device.
        device: device of the result.

    Returns:
        The tensor itself if it is there already.
    """
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        # `pin_memory` refuses expanded tensors.
        pinned = x if x.is_pinned() else torch.empty_like(x, pin_memory=True).copy_(x)
        return pinned.to(device, non_blocking=True)
    return x.to(device)


class DeviceConstant:
    """Constant tensor that is copied once to every device where it is used.

    Args:
        value: tensor on the CPU, which nobody changes.
    """

    def __init__(self, value: Tensor):
        self._copies = {torch.device("cpu"): value}

    def on(self, device: torch.device | str) -> Tensor:
        """Return the constant on a device; callers must not change it."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._copies:
            # A tensor created in inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                copy = to_device(self._copies[torch.device("cpu")], device)
            if type(copy) is not Tensor:  # a stand-in, such as a FakeTensor, belongs to its mode
                return copy
            self._copies[device] = copy
        return self._copies[device]


def constant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function of hashable values and a device: it is computed once on the CPU, and copied once per device.

    So every call launches fewer kernels, and all devices compute with the same constants.

    Args:
        function: function whose last argument is the device.

    Returns:
        The function with the same arguments; callers must not change its result.
    """

    @lru_cache(maxsize=64)
    def computed(*arguments: Any) -> DeviceConstant:
        with torch.inference_mode(False), torch.no_grad():  # training uses the constant, too
            return DeviceConstant(function(*arguments, torch.device("cpu")))

    @wraps(function)
    def on_device(*arguments: Any) -> Tensor:
        *values, device = arguments
        # Tensors without data, on which operations are counted, cannot be mixed with others.
        has_data = type(torch.empty(0, device="cpu")) is Tensor
        return computed(*values).on(device) if has_data else function(*values, torch.device(device))

    return on_device


class HostCopy:
    """Copy of a tensor on its way from a GPU to the host: read it some steps later, when it has arrived long since.

    Args:
        x: tensor on any device; later changes of a tensor on the CPU are not seen.
    """

    def __init__(self, x: Tensor):
        x = x.detach()
        self._arrival: torch.cuda.Event | None = None
        if x.device.type == "cuda":
            self._value = torch.empty_like(x, device="cpu", pin_memory=True)  # in the same memory layout
            self._value.copy_(x, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(x.device))  # which need not be the current device
        else:
            self._value = x.to("cpu", copy=True)

    @property
    def arrived(self) -> bool:
        """Whether the value can be read without waiting."""
        return self._arrival is None or self._arrival.query()

    def read(self) -> Tensor:
        """Return the value on the CPU, after waiting for the device if it has not arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._value
