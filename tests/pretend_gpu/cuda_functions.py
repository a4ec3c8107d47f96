"""Stand-ins for the functions and classes of `torch.cuda` and `torch.accelerator`, for a GPU that is never there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from pretend_gpu.marks import CUDA
from pretend_gpu.watch import Watch

NAME, CAPABILITY, MEMORY = "NVIDIA H200", (9, 0), 150 * 10**9
REAL_GENERATOR = torch.Generator


def event_class(watch: Watch) -> type:
    """Return a stand-in for `torch.cuda.Event`: one of the current step has not happened yet, all earlier ones have."""

    class Event(torch.cuda.Event):
        def __new__(cls, *_: Any, **__: Any) -> "Event":
            try:
                return super().__new__(cls)
            except RuntimeError:  # PyTorch without CUDA has a dummy as base class
                return object.__new__(cls)

        def record(self, stream: Any = None) -> None:
            watch.clock += 1
            self.time, self.step = watch.clock, watch.steps

        def query(self) -> bool:
            recorded = getattr(self, "step", None)
            happened = recorded is None or recorded < watch.steps or self.time <= watch.arrived
            if happened and recorded is not None:
                watch.arrived = max(watch.arrived, self.time)
            return happened

        def synchronize(self) -> None:
            if not self.query():
                watch.wait("synchronize of an event of this step")

        def wait(self, stream: Any = None) -> None: ...

        def elapsed_time(self, end_event: Any) -> float:
            return 1.0

    return Event


def stream_class(watch: Watch, event: type) -> type:
    """Return a stand-in for `torch.cuda.Stream`."""

    class Stream:
        device = CUDA
        device_index = 0
        stream_id = cuda_stream = 0

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def synchronize(self) -> None:
            watch.wait("synchronize of a stream")

        def query(self) -> bool:
            return False

        def wait_stream(self, stream: Any) -> None: ...

        def wait_event(self, waited: Any) -> None: ...

        def record_event(self, recorded: Any = None) -> Any:
            recorded = recorded or event()
            recorded.record(self)
            return recorded

        def __enter__(self) -> "Stream":
            return self

        def __exit__(self, *_: Any) -> None: ...

    return Stream


class _CudaGenerator(REAL_GENERATOR):  # type: ignore[misc, valid-type]
    """Generator that says it is on the GPU."""

    device = CUDA  # type: ignore[assignment]


class _GeneratorType(type):
    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return _CudaGenerator() if torch.device(device).type == "cuda" else REAL_GENERATOR(device)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, REAL_GENERATOR)


class Generator(metaclass=_GeneratorType):
    """Stand-in for `torch.Generator`, which needs a GPU for device cuda."""


def cuda_functions(watch: Watch) -> dict[str, Any]:
    """Return stand-ins for attributes of `torch.cuda`, by name."""
    event = event_class(watch)
    stream = stream_class(watch, event)
    zero: Callable[..., int] = lambda *_, **__: 0  # noqa: E731
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    properties = SimpleNamespace(name=NAME, major=9, minor=0, total_memory=MEMORY, multi_processor_count=132)

    @contextmanager
    def use_stream(chosen: Any) -> Iterator[None]:
        yield

    return {
        "Event": event,
        "Stream": stream,
        "stream": use_stream,
        "current_stream": lambda *_: stream(),
        "default_stream": lambda *_: stream(),
        "device": lambda *_: nullcontext(),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": nothing,
        "_lazy_init": nothing,
        "device_count": lambda: 1,
        "current_device": zero,
        "set_device": nothing,
        "synchronize": lambda *_, **__: watch.wait("torch.cuda.synchronize"),
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [],
        "set_rng_state": nothing,
        "set_rng_state_all": nothing,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "memory_allocated": zero,
        "memory_reserved": zero,
        "max_memory_allocated": zero,
        "max_memory_reserved": zero,
        "memory_stats": lambda *_: {},
        "reset_peak_memory_stats": nothing,
        "empty_cache": nothing,
        "ipc_collect": nothing,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: CAPABILITY,
        "get_device_properties": lambda *_: properties,
        "get_arch_list": lambda: ["sm_90"],
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "get_sync_debug_mode": zero,
        "set_sync_debug_mode": nothing,
    }


def accelerator_functions(cuda: dict[str, Any]) -> dict[str, Any]:
    """Return stand-ins for attributes of `torch.accelerator`, by name."""
    same = ("is_available", "device_count", "synchronize", "current_stream", "empty_cache", "memory_allocated")
    same += ("memory_reserved", "max_memory_allocated", "reset_peak_memory_stats", "memory_stats", "get_memory_info")
    functions = {name: cuda["mem_get_info" if name == "get_memory_info" else name] for name in same}
    return functions | {
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "current_device_index": lambda: 0,
        "current_device_idx": lambda: 0,
        "set_device_index": lambda *_: None,
        "set_device_idx": lambda *_: None,
        "set_stream": lambda *_: None,
    }
