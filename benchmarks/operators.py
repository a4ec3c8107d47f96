"""Record the operators of a computation on tensors without data: their operations, the bytes they move, live memory.

Nothing is computed: everything runs on PyTorch's fake tensors, which have shapes, strides and types only. So a training
step of the largest network is recorded within seconds on a CPU.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

Piece = tuple[int, int, int]  # part of a storage: number of the storage, offset, number of values

# Operators that launch no kernel, next to views.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
GATHERS = {"index_select", "index", "embedding", "gather"}  # rows that are read again come from a cache
SCATTERS = {"scatter_add_", "scatter_add", "index_add", "index_add_", "index_put_", "embedding_dense_backward"}
OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_"}  # do not read what they write
ATTENTION = "scaled_dot_product"
# FLOPs of attention relative to its forward pass: its backward pass computes the scores again, and four products.
ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class Operator:
    """One operator, which is one kernel on a GPU or a few.

    Attributes:
        name: its name, without the overload.
        phase: part of the computation that it belongs to.
        fusible: whether the compiler can fuse it with its neighbors.
        flops: multiplications and additions of matrix products, convolutions and attention.
        bits: width of its numbers.
        atomics: number of atomic additions.
        reads: bytes read, by piece of memory.
        writes: bytes written, by piece of memory.
        reduces: whether it sums over other axes than the last.
    """

    name: str
    phase: str
    fusible: bool
    flops: int
    bits: int
    atomics: int
    reads: dict[Piece, int]
    writes: dict[Piece, int]
    reduces: bool

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())


class Recorder(TorchDispatchMode):
    """Records every operator that runs inside.

    Attributes:
        operators: operators in order, without views.
        phase: name of the current part of the computation.
        fusible: whether operators run inside the compiled part of it.
        live: bytes of the tensors that exist now.
        peak: largest value of `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.phase, self.fusible = "", False
        self.live = self.peak = 0
        self._numbers = WeakIdKeyDictionary()  # of storages
        self._count = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Function modes, such as `_OnCPU`, do not hold within a backward pass.
        kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self.number(tensor)
        name = func.__name__.split(".")[0]
        if _tensors(result) and not (func.is_view or name in FREE or func.namespace != "aten"):
            self.operators.append(self._operator(func, name, args, kwargs, result))
        return result

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor's storage; a new one counts as live until it is freed."""
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            self._count += 1
            self._numbers[storage] = self._count
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes())
        number: int = self._numbers[storage]
        return number

    def size(self, tensor: Tensor) -> int:
        """Return the bytes of a tensor that existed before, which count as live from now on."""
        self.number(tensor)
        return tensor.untyped_storage().nbytes()

    def start(self) -> None:
        """Forget all operators, and record from here on."""
        self.operators, self.peak = [], self.live
        self.phase, self.fusible = "forward", False

    @contextmanager
    def compiled(self, network: nn.Module) -> Iterator[None]:
        """Take the operators of a network, and those of its backward pass until it ends, for compiled."""

        def begin(*_: Any) -> None:
            self.fusible = True

        def end(module: nn.Module, inputs: Any, result: Any) -> None:
            self.fusible = False
            for tensor in _tensors(result):
                if tensor.requires_grad:
                    tensor.register_hook(begin)

        hooks = network.register_forward_pre_hook(begin), network.register_forward_hook(end)
        yield
        for hook in hooks:
            hook.remove()

    def _free(self, size: int) -> None:
        self.live -= size

    def _operator(
        self, func: OpOverload, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> Operator:
        given, made = _tensors((args, kwargs)), _tensors(result)
        changed = _tensors(
            [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write and argument.name != "grads"
            ]
        )
        old = {id(tensor) for tensor in given}
        read = [t for t in given if name not in OVERWRITE or not any(t is c for c in changed)]
        written = [*changed, *(t for t in made if id(t) not in old)]
        reads, writes = ({self._piece(t): _bytes(t) for t in tensors} for tensors in (read, written))
        if name in GATHERS:
            reads[self._piece(given[0])] = min(_bytes(given[0]), sum(writes.values()))
        flops = _flops(func, name, args, kwargs, result)
        scatter = name in SCATTERS
        return Operator(
            name,
            self.phase,
            self.fusible and not flops and not scatter and not name.startswith("_f"),  # _foreach_, _fused_
            flops,
            8 * min((t.element_size() for t in given if t.is_floating_point()), default=4),
            max(t.numel() for t in given) if scatter else 0,
            reads,
            writes,
            name in ("sum", "mean") and _sums_over_others(args),
        )

    def _piece(self, tensor: Tensor) -> Piece:
        return self.number(tensor), int(tensor.storage_offset()), tensor.numel()


@contextmanager
def without_data(*, compiled: bool = False) -> Iterator[None]:
    """Compute on fake tensors. PyTorch sees them on the CPU, asyncdiff on a GPU, so that it does what it does there.

    On CUDA, fake tensors would have no backward pass without a driver.

    Args:
        compiled: whether asyncdiff also takes itself for compiled.
    """
    device = FakeTensor.device.fget
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
            stack.enter_context(patch.object(torch, name, partial(_for_cpu, getattr(torch, name))))
        stack.enter_context(patch.object(torch.nn.functional, "rms_norm", _rms_norm))
        compiling = partial(_is_compiling, compiled, torch.compiler.is_compiling)
        stack.enter_context(patch.object(torch.compiler, "is_compiling", compiling))
        stack.enter_context(patch.object(FakeTensor, "device", property(partial(_device, device))))
        stack.enter_context(_OnCPU())
        yield


def filled(network: nn.Module) -> nn.Module:
    """Replace the parameters and buffers of a network on the meta device, inside `without_data`, and return it."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cpu")
                    tensors[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return network


class _OnCPU(TorchFunctionMode):
    """Puts on the CPU what is to be put on a GPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **named)


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Stand in for rms_norm: one kernel on GPUs (since PyTorch 2.9) that moves and stores as much, several on CPUs."""
    return torch.nn.functional.layer_norm(x, shape, weight, None, eps or 1e-6)


def _device(original: Callable[[Tensor], torch.device], tensor: Tensor) -> torch.device:
    return torch.device("cuda", 0) if _called_by_asyncdiff() else original(tensor)


def _is_compiling(compiled: bool, original: Callable[[], bool]) -> bool:
    return compiled if _called_by_asyncdiff() else original()


def _called_by_asyncdiff() -> bool:
    """Return whether the caller of the caller is code of asyncdiff."""
    name: str = sys._getframe(2).f_globals["__name__"]
    return name.startswith("asyncdiff.")


def _for_cpu(function: Callable[..., Any], device_type: str, *args: Any, **options: Any) -> Any:
    return function("cpu", *args, **options)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor, in which repeated values of an expanded one count once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def _flops(func: OpOverload, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    if ATTENTION in name:
        query, key = [t for t in _tensors(args) if t.dim() == 4][:2] if "backward" not in name else _tensors(args)[1:3]
        b, heads, n, dim = query.shape
        forward = 4 * b * heads * n * key.shape[2] * dim
        return int(forward * (ATTENTION_BACKWARD if "backward" in name else 1))
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=result)) if count else 0


def _sums_over_others(args: Sequence[Any]) -> bool:
    tensor, axes = args[0], args[1] if len(args) > 1 else None
    return not axes or any(axis % tensor.dim() != tensor.dim() - 1 for axis in axes)
