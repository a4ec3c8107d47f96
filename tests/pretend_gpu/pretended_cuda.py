"""A pretended GPU: runs on any machine what would run on a GPU, and sees where it would wait, fail or differ.

Tensors are CPU tensors with their true numbers. The storage of one that a program puts on "cuda" is marked; its device
is "cuda:0" then, so that the program takes the branches that it takes on a GPU, and its results can be compared with
those of the CPU. What is not seen: whether a kernel exists, its rounding, and time.

    with pretended_cuda() as watch:
        model.to("cuda")
        watch.clear()
        train(model)
    assert not watch.waits and not watch.mixed
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
import torch._dynamo  # noqa: F401  # lists the functions of torch at its import, and must not find replacements
import torch.utils.checkpoint
from pretend_gpu.cuda_functions import Generator, accelerator_functions, cuda_functions
from pretend_gpu.marks import CPU, CUDA, device_of, is_pinned, on_gpu
from pretend_gpu.modes import Operators, PythonCalls, pinned_copy
from pretend_gpu.watch import Watch
from torch import Tensor

T = TypeVar("T")
_active: list[Operators] = []


@contextmanager
def pretended_cuda() -> Iterator[Watch]:
    """Pretend that this machine has one H200, and watch what runs on it."""
    watch = Watch()
    with ExitStack() as stack:
        operators = Operators(watch)
        for target, name, value in _replacements(watch, operators):
            if hasattr(target, name):
                stack.enter_context(mock.patch.object(target, name, value))
        # Forward and backward pass see devices by different modes.
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        stack.enter_context(mock.patch.dict(checks, default=lambda x: (tuple(x.shape), x.dtype, device_of(x))))
        stack.enter_context(operators)
        stack.enter_context(PythonCalls(watch, operators))
        _active.append(operators)
        stack.callback(_active.pop)
        yield watch


def run_on_both(flow: Callable[[torch.device, Watch], T], seed: int = 0) -> tuple[Watch, T, T]:
    """Run a flow on the CPU and on the pretended GPU, from the same state of the global generator.

    Args:
        flow: function of a device and of the watch, which may clear it after setting up and mark steps; what it returns
            can be compared. On the CPU its watch sees nothing.
        seed: seed of torch's global generator.

    Returns:
        What was seen of the GPU, and the results of CPU and GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        usual = flow(CPU, Watch())
        torch.manual_seed(seed)
        with pretended_cuda() as watch:
            return watch, usual, flow(CUDA, watch)


def made_on_gpu() -> AbstractContextManager[None]:
    """Let tensors that C++ makes from nothing be on the GPU."""
    return _active[-1].making(on_gpu=True)


def _replacements(watch: Watch, operators: Operators) -> Iterator[tuple[Any, str, Any]]:
    """Yield what to replace: the object, the name of its attribute, and the stand-in."""
    cuda = cuda_functions(watch)
    for name, value in cuda.items():
        yield torch.cuda, name, value
    for name, value in accelerator_functions(cuda).items():
        yield torch.accelerator, name, value
    yield torch, "Generator", Generator
    # Threads, such as those of data loaders, see none of the modes.
    yield Tensor, "pin_memory", lambda x, *_, **__: pinned_copy(watch, x)
    yield Tensor, "is_pinned", lambda x, *_, **__: is_pinned(x)
    yield Tensor, "record_stream", lambda *_: None
    yield threading.Thread, "run", _in_modes(watch, threading.Thread.run)
    for module in (torch.autograd, sys.modules["torch.autograd.graph"]):
        yield module, "_engine_run_backward", _in_mode(watch, operators, torch.autograd.graph._engine_run_backward)
    yield torch.amp.autocast_mode.autocast, "__init__", _on_cpu(torch.amp.autocast_mode.autocast.__init__, 1)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        yield torch, name, _on_cpu(getattr(torch, name), 0)
    yield torch._C, "_group_tensors_by_device_and_dtype", _grouped(torch._C._group_tensors_by_device_and_dtype)
    yield torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None
    yield torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda _: None


def _in_mode(watch: Watch, operators: Operators, run: Callable[..., Any]) -> Callable[..., Any]:
    """Let Python inside the backward pass see the pretended devices, too."""

    def in_mode(*args: Any, **kwargs: Any) -> Any:
        with PythonCalls(watch, operators):
            return run(*args, **kwargs)

    return in_mode


def _in_modes(watch: Watch, run: Callable[..., Any]) -> Callable[..., Any]:
    """Let a thread see the pretended devices."""

    def in_modes(*args: Any, **kwargs: Any) -> Any:
        with Operators(watch) as operators, PythonCalls(watch, operators):
            return run(*args, **kwargs)

    return in_modes


def _on_cpu(function: Callable[..., Any], position: int) -> Callable[..., Any]:
    """Return the function with the CPU as its device type instead of cuda."""

    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        kwargs = {k: "cpu" if k == "device_type" and v == "cuda" else v for k, v in kwargs.items()}
        args = tuple("cpu" if i == position and v == "cuda" else v for i, v in enumerate(args))
        return function(*args, **kwargs)

    return on_cpu


def _grouped(group: Callable[..., Any]) -> Callable[..., Any]:
    """Group tensors, as optimizers do, by the devices that they pretend to be on."""

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = group(lists, with_indices)
        return {(CUDA if on_gpu(lists_[0][0][0]) else key[0], key[1]): lists_ for key, lists_ in found.items()}

    return grouped
