"""Two modes of PyTorch that see what a program asks of tensors, and answer as if some were on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pretend_gpu.marks import (
    CPU,
    CUDA,
    arrival,
    device_of,
    is_pinned,
    on_gpu,
    pin,
    put_on_gpu,
    set_arrival,
    tensors_of,
)
from pretend_gpu.watch import Watch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators for which CUDA reads a number of the device on the host.
WAITING = {
    "_local_scalar_dense": "a number is read",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "equal": "torch.equal",
    "allclose": "torch.allclose",
    "bincount": "bincount",
    "histc": "histc",
    "_linalg_eigh": "eigh",
    "_linalg_svd": "svd",
    "_linalg_check_errors": "errors of linear algebra are read",
}
# Operators that accept tensors of the host next to those of the device, sometimes by copying them.
ACCEPTING = {"copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_", "set_"}
# Operators that launch no kernel.
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "lift_fresh"}
NO_KERNEL |= {"_unsafe_view", "_reshape_alias", "_local_scalar_dense", "detach_", "set_", "resize_", "record_stream"}
FROM_HOST = ("tensor", "new_tensor", "as_tensor", "asarray", "from_numpy", "sparse_coo_tensor")
READING = ("tolist", "numpy", "__array__", "__repr__", "__format__")


class PythonCalls(TorchFunctionMode):
    """Answers what Python asks of tensors: their device, copies to another one, new tensors."""

    def __init__(self, watch: Watch, operators: "Operators"):
        super().__init__()
        self.watch, self.operators = watch, operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if name == "__get__" and isinstance(first, Tensor):
            return self._attribute(func, first, args, kwargs)
        if isinstance(first, Tensor):
            if name in ("to", "cuda", "cpu"):
                return self._move(name, args, kwargs)
            if name in READING:
                return self._read(name, func, args, kwargs)
            if name in ("pin_memory", "is_pinned"):
                return pinned_copy(self.watch, first) if name == "pin_memory" else is_pinned(first)
            if name == "record_stream":
                return None
            if name == "__deepcopy__":
                return put_on_gpu(self._without_checks(func, args, kwargs), on_gpu(first))
        if name == "one_hot" and on_gpu(first) and (kwargs.get("num_classes", args[1] if len(args) > 1 else -1) > 0):
            return self._without_checks(func, args, kwargs)
        if name in FROM_HOST and isinstance(first, Tensor) and name != "new_tensor":
            moved = (first, torch.device(kwargs.get("device") or device_of(first)), kwargs.get("dtype"))
            return self._move("to", moved, {})
        return self._create(name, func, args, kwargs)

    def _attribute(self, func: Any, x: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if attribute in ("device", "is_cuda", "is_cpu") and on_gpu(x):
            return {"device": CUDA, "is_cuda": True, "is_cpu": False}[attribute]
        return func(*args, **kwargs)

    def _read(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if on_gpu(args[0]):
            if name in ("numpy", "__array__"):
                self.watch.mix(f"{name}() of a tensor on the GPU")
            self.watch.wait(name)
        check_arrived(self.watch, args[0])
        return func(*args, **kwargs)

    def _without_checks(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function that reads or copies on the CPU what stays on a GPU."""
        waits, arrived = len(self.watch.waits), self.watch.arrived
        result = self._create("", func, args, kwargs)
        del self.watch.waits[waits:]
        self.watch.arrived = arrived
        return result

    def _create(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call any other function; new tensors are where they are wanted."""
        pinned = kwargs.pop("pin_memory", False)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        wanted = device is not None and device.type == "cuda"
        if wanted:
            kwargs["device"] = "cpu"
        generator = kwargs.get("generator")
        if generator is not None and (device is not None or (args and on_gpu(args[0]))):
            inside = wanted if device is not None else True
            if (generator.device.type == "cuda") != inside:
                self.watch.mix(f"{name} with a generator of another device")
        inside = wanted or (device is None and name.startswith("new_") and bool(args) and on_gpu(args[0]))
        if inside and name in FROM_HOST:
            self.watch.wait(f"{name} of numbers of the host")
        given = list(tensors_of((args, kwargs)))
        with self.operators.making(on_gpu=inside or (device is None and any(on_gpu(x) for x in given))):
            result = func(*args, **kwargs)
        if device is not None and device.type in ("cuda", "cpu"):
            if wanted and name not in NO_KERNEL and name not in FROM_HOST and isinstance(result, Tensor):
                self.watch.kernels[name] += not any(on_gpu(x) for x in given)
            put_on_gpu([x for x in tensors_of(result) if not any(x is other for other in given)], wanted)
        elif inside:
            put_on_gpu(result)
        return pin(result) if pinned else result

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Carry out `to`, `cuda` or `cpu`."""
        x, rest = args[0], list(args[1:])
        was = on_gpu(x)
        target, dtype = (CUDA if was else device_of(x)), kwargs.get("dtype")
        if name == "to":
            given = kwargs.get("device", kwargs.get("other"))
            if given is None and rest and not isinstance(rest[0], torch.dtype):
                given = rest.pop(0)
            if isinstance(given, Tensor):
                target, dtype = device_of(given), given.dtype
            elif given is not None:
                target = torch.device(given)
            if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
                dtype = rest.pop(0) or dtype
        else:
            target = CUDA if name == "cuda" else CPU
            if rest and not isinstance(rest[0], bool):
                rest.pop(0)
        non_blocking = bool(kwargs.get("non_blocking", rest.pop(0) if rest else False))
        copy = bool(kwargs.get("copy", rest.pop(0) if rest else False))
        layout = {"memory_format": kwargs["memory_format"]} if kwargs.get("memory_format") is not None else {}
        inside = target.type == "cuda"
        real = CPU if inside else target
        if was == inside or target.type not in ("cpu", "cuda"):
            return Tensor.to(x, real, dtype or x.dtype, copy=copy, **layout)
        pinned = is_pinned(x)
        check_arrived(self.watch, x)
        result = Tensor.to(x, real, dtype or x.dtype, copy=True, **layout)
        put_on_gpu(result, inside)
        if inside:
            self._note_upload(non_blocking and pinned, pinned)
        elif non_blocking:  # PyTorch copies into pinned memory then
            set_arrival(pin(result), self.watch.clock + 1)
        else:
            self.watch.wait("copied to the host")
        self.watch.kernels["copy_"] += 1
        return result

    def _note_upload(self, free: bool, pinned: bool) -> None:
        if not free:
            self.watch.wait("copied from the host, blocking" if pinned else "copied from unpinned memory of the host")


class Operators(TorchDispatchMode):
    """Sees every operator with its tensors, those of the backward pass included, and marks its results."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch
        self._fresh_on_gpu = False  # whether C++ makes new tensors on the GPU

    @contextmanager
    def making(self, on_gpu: bool) -> Iterator[None]:
        """Let tensors that C++ makes from nothing be on the GPU, or on the host."""
        before, self._fresh_on_gpu = self._fresh_on_gpu, on_gpu
        try:
            yield
        finally:
            self._fresh_on_gpu = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its operators on shards are seen
        kwargs = kwargs or {}
        given = list(tensors_of((args, kwargs)))
        inside = [x for x in given if on_gpu(x)]
        name = func.__name__.split(".")[0]
        if inside:
            self._check(func, name, args, kwargs, given, inside)
        if name != "copy_":
            for x in given:
                check_arrived(self.watch, x)
        result = func(*args, **kwargs)
        made_there = not (name == "copy_" and not on_gpu(args[0])) if inside else self._fresh_on_gpu and not given
        if made_there and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            put_on_gpu(result)
        return result

    def _check(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], given: list[Tensor], inside: list[Tensor]
    ) -> None:
        outside = [x for x in given if not on_gpu(x) and device_of(x).type == "cpu"]
        # Numbers of the host may be arguments of kernels.
        scalars = torch.Tag.pointwise in func.tags or name.startswith(("_foreach", "fill", "where", "masked_fill"))
        if name.lstrip("_").startswith("index") and name in ACCEPTING:
            self._check_indices(name, args)
        elif name == "copy_" and outside:
            self._check_copy(args[0], args[1], bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False)))
        elif name not in ACCEPTING and (any(x.ndim for x in outside) or (outside and not scalars)):
            shapes = ", ".join(f"{device_of(x).type}{list(x.shape)}" for x in (*outside[:2], *inside[:2]))
            self.watch.mix(f"{func} of {shapes}")
        if (what := WAITING.get(name)) is not None:
            self.watch.wait(what)
        if func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.watch.wait("repeat_interleave")
        if not func.is_view and name not in NO_KERNEL:
            self.watch.kernels[name] += 1

    def _check_indices(self, name: str, args: Any) -> None:
        indices = [index for index in args[1] if index is not None]
        values = args[2] if len(args) > 2 else None
        number = values is not None and not on_gpu(values) and values.numel() == 1
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        if not on_gpu(args[0]):
            self.watch.mix(f"{name} of a tensor of the host with tensors on the GPU")
        elif any(not on_gpu(index) for index in indices):
            self.watch.wait(f"{name} by indices of the host")
        elif masks and not (number and len(indices) == 1):  # a number at a mask is a masked_fill
            self.watch.wait(f"{name} by a mask")
        elif number and not masks:
            self.watch.wait(f"{name} of a number of the host")
        elif values is not None and not on_gpu(values) and not number:
            self.watch.mix(f"{name} of values of the host")

    def _check_copy(self, to: Tensor, source: Tensor, non_blocking: bool) -> None:
        if device_of(source).type == "meta":
            return
        host = source if on_gpu(to) else to
        if not (non_blocking and is_pinned(host)):
            self.watch.wait("copy_ between host and GPU" + ("" if is_pinned(host) else ", unpinned memory"))
            check_arrived(self.watch, source)
        elif host is to:
            set_arrival(to, self.watch.clock + 1)
        else:
            check_arrived(self.watch, source)


def pinned_copy(watch: Watch, x: Tensor) -> Tensor:
    """Return a tensor in pinned memory, itself if it is there already."""
    if on_gpu(x):
        watch.mix("pin_memory of a tensor on the GPU")
    # With the strides of `x`, as in PyTorch, so that expanded tensors are refused.
    return x if is_pinned(x) else pin(torch.empty_strided(x.size(), x.stride(), dtype=x.dtype).copy_(x))


def check_arrived(watch: Watch, x: Tensor) -> None:
    """Record a failure if memory of the host is read or overwritten before a copy into it has arrived."""
    if arrival(x) > watch.arrived:
        watch.mix("memory of the host is used before the copy from the GPU has arrived")
