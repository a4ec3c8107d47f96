"""Measure what one evaluation of a model costs on its device and in its precision, at a few sizes that are cheap."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from asyncdiff.model import Model
from asyncdiff.sampling.engine import device_of, evaluation_mode
from asyncdiff.tasks.drawing_cost import EvaluationCost, Measurement

FACTORS = (0.25, 0.5, 1, 2, 4, 8, 16)  # sides of the measured images, relative to the model's
ENOUGH = 3  # measurements that determine how the costs grow
CHEAP, EXPENSIVE = 0.1, 2.0  # seconds of an evaluation that end the measurements: after `ENOUGH` of them, and always
REPEATED = 0.15  # seconds during which an evaluation is repeated, for a precise duration
# Functions that count floating-point operations; the table lacks attention on a CPU, which takes as many as on a GPU.
OPERATIONS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ]
}

Size = tuple[int, int]


def measure_network(model: Model, *, largest: float = math.inf, repeated: float = REPEATED) -> EvaluationCost:
    """Measure an evaluation of the network, in which every patch has its own level.

    Args:
        model: model of the network.
        largest: number of latents, or pixels, of the largest image that is of interest.
        repeated: seconds during which an evaluation is repeated; 0 measures its memory, and its duration roughly.

    Returns:
        The cost of an evaluation for images of any size.
    """
    device = device_of(model.denoiser)

    def prepare(size: Size) -> Callable[[], Any]:
        x_t = torch.zeros(1, model.shape[0], *size, device=device)
        t = torch.linspace(0.1, 0.9, len(x_t[0, 0].flatten()), device=device)
        gh, gw = model.denoiser.grid(size)
        return lambda: model.denoiser(x_t, t[: gh * gw].reshape(1, gh, gw))

    with evaluation_mode(model.denoiser):
        return _measure(prepare, model, largest, repeated)


def measure_decoder(model: Model) -> EvaluationCost:
    """Measure the decoding of the latents of one image."""
    device = device_of(model.denoiser)

    def prepare(size: Size) -> Callable[[], Any]:
        x = torch.zeros(1, model.shape[0], *size, device=device)
        return lambda: model.decode(x)

    return _measure(prepare, model)


def measured_sizes(model: Model) -> list[Size]:
    """Return (height, width) in the model's space of the images to measure, from small to large."""
    sizes = []
    for factor in FACTORS:
        height, width = model.shape[1] * factor, model.shape[2] * factor
        size = (int(height), int(width))
        try:
            if size == (height, width) and min(model.denoiser.grid(size)) > 1:
                sizes.append(size)
        except ValueError:  # no multiple of the patches
            continue
    return sizes or [(model.shape[1], model.shape[2])]


@contextmanager
def count_evaluations(model: Model) -> Iterator[list[int]]:
    """Collect the number of images of every evaluation of the denoiser inside the context."""
    counts: list[int] = []
    handle = model.denoiser.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    try:
        yield counts
    finally:
        handle.remove()


@torch.no_grad()
def _measure(
    prepare: Callable[[Size], Callable[[], Any]], model: Model, largest: float = math.inf, repeated: float = REPEATED
) -> EvaluationCost:
    """Measure functions that are prepared for images of increasing size, as long as they are cheap."""
    measurements: list[Measurement] = []
    device = device_of(model.denoiser)
    for size in measured_sizes(model):
        if measurements and size[0] * size[1] > largest:
            break
        evaluate = prepare(size)
        with model.sampling_context():
            if torch.is_autocast_enabled(device.type):
                evaluate()  # converts the weights, which later evaluations use
            work, memory = _count(evaluate)
            seconds = _time(evaluate, repeated, device)
        measurements.append(Measurement(size[0] * size[1], seconds, work, memory))
        if seconds > (CHEAP if len(measurements) >= ENOUGH and size >= model.shape[1:] else EXPENSIVE):
            break
    return EvaluationCost(measurements)


def _count(evaluate: Callable[[], Any]) -> tuple[float, float]:
    """Return the floating-point operations and the bytes of an evaluation."""
    with _Counter() as counter:
        evaluate()
    return counter.operations, counter.peak


def _time(evaluate: Callable[[], Any], repeated: float, device: torch.device) -> float:
    """Return the least seconds of several evaluations, within `repeated` seconds or longer for at least three.

    Other programs only slow them down, the first one most: it would be measured alone if it took all the time.
    """
    durations: list[float] = []
    while not durations or sum(durations) < repeated * (1 if len(durations) >= 3 else 10):
        started = time.perf_counter()
        evaluate()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - started)
    return min(durations)


class _Counter(TorchDispatchMode):
    """Counts floating-point operations inside the context, and the bytes of new tensors that exist at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.peak, self._now = 0, 0, 0
        self._owners: dict[int, int] = {}  # number of tensors of every storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in OPERATIONS:
            self.operations += OPERATIONS[func.overloadpacket](*args, **kwargs, out_val=result)
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self._add(value)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self._owners:
            self._owners[address], self._now = 0, self._now + size
            self.peak = max(self.peak, self._now)
        self._owners[address] += 1
        finalize(tensor, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._owners[address] -= 1
        if not self._owners[address]:
            del self._owners[address]
            self._now -= size
