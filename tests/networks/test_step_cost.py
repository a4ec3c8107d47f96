"""Kernels, and bytes that they read and write, of training steps and evaluations of a DiT-B/2 as on a GPU, counted.

Tensors have shapes and types only. They lie on the CPU, since those on CUDA have no backward pass without a driver; the
network takes the way of a GPU all the same. The forward pass on CUDA itself shows which types autocast chooses there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asyncdiff.networks import modulation
from asyncdiff.networks.dit import DiT
from asyncdiff.shapes import IndexedLevels

BATCH, TOKENS, DIM, LEVELS = 256, 256, 768, 256
TOKENS_BYTES = BATCH * TOKENS * DIM * 2  # of all tokens in bfloat16: the unit of all costs
FREE = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "_unsafe_view", "lift_fresh"}
# Results that depend on the order in which threads arrive, by PyTorch's list for use_deterministic_algorithms.
NONDETERMINISTIC = {"scatter_add", "scatter_add_", "index_add", "index_add_", "index_copy", "scatter_reduce"}
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)


class Operators(TorchDispatchMode):
    """Names of all operators, without views, and the bytes that each reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes: list[int] = []
        self.types: list[tuple[list[torch.dtype], list[torch.dtype]]] = []  # of tensors as large as all tokens

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if not func.is_view and name not in FREE and func.namespace == "aten":
            given, made = ([x for x in tree_leaves(t) if isinstance(x, Tensor)] for t in ((args, kwargs), result))
            self.names.append(name)
            reads = made + given[-1:] if name in ("index_select", "embedding") else given
            self.bytes.append(sum(map(size, [*reads, *made])))
            self.types.append(tuple([x.dtype for x in t if x.numel() >= large] for t in (given, made)))
        return result


large = BATCH * TOKENS * DIM


def size(x: Tensor) -> int:
    """Bytes of a tensor; repeated values of an expanded one count once."""
    return x.element_size() * torch.Size(n if step else 1 for n, step in zip(x.shape, x.stride(), strict=True)).numel()


@contextmanager
def as_on_gpu(device: str = "cpu") -> Iterator[None]:
    with (
        FakeTensorMode(),
        torch.device(device),
        mock.patch.object(modulation, "few_passes", return_value=True),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
    ):
        yield


def count(kind: str, depth: int, *, train: bool = True, device: str = "cpu", **options: Any) -> Operators:
    with as_on_gpu(device):
        network = DiT(channels=4, patch_size=2, dim=DIM, depth=depth, heads=12, classes=1000, **options)
        x, label = torch.zeros(BATCH, 4, 32, 32), torch.zeros(BATCH, dtype=torch.int64)
        t = IndexedLevels.per_image(torch.zeros(BATCH))
        if kind == "map":
            t = IndexedLevels(torch.zeros(LEVELS), torch.zeros(BATCH, 16, 16, dtype=torch.int64))
        with torch.set_grad_enabled(train), Operators() as operators:
            with torch.autocast(device, torch.bfloat16):
                v = network(x, t, label)
            if train and device == "cpu":
                v.float().square().sum().backward()
    return operators


def per_block(kind: str, **options: Any) -> tuple[int, float]:
    """Kernels of a block, and their bytes as a multiple of those of all tokens."""
    one, two = count(kind, 1, **options), count(kind, 2, **options)
    return len(two.names) - len(one.names), (sum(two.bytes) - sum(one.bytes)) / TOKENS_BYTES


@pytest.mark.skipif(OLD, reason="PyTorch 2.8 launches 92 kernels with one level")
@pytest.mark.parametrize(
    ("train", "kernels", "extra"),
    [(True, {"one": 86, "map": 112}, 25.3), (False, {"one": 32, "map": 39}, 6.9)],
)
def test_a_level_map_costs_few_kernels_and_passes_over_the_tokens(train, kernels, extra):
    """In a block, compared with one level per image.

    As on CPUs, with scatter_add_ and one pass for every addition, a training step has 134 and 146 kernels and 86 extra
    passes, an evaluation 45 and 41 kernels and 26 extra passes.
    """
    (one, one_passes), (many, passes) = (per_block(kind, train=train) for kind in ("one", "map"))
    assert {"one": one, "map": many} == kernels
    assert passes - one_passes == pytest.approx(extra, abs=0.1)


@pytest.mark.parametrize("kind", ["one", "map"])
@pytest.mark.parametrize("options", [{}, {"joint_labels": True}, {"rope": True, "qk_norm": True}])
def test_no_operator_of_a_step_depends_on_the_order_of_threads(kind, options, monkeypatch):
    monkeypatch.setattr("test_step_cost.LEVELS", 32)  # fewer than tokens, as is needed for labels in every level
    assert not NONDETERMINISTIC.intersection(count(kind, 1, **options).names)


@pytest.mark.skipif(OLD, reason="fake tensors on CUDA need a driver in PyTorch 2.8")
def test_autocast_copies_no_tokens_to_float32():
    """On CUDA, addcmul is computed in the widest type of its inputs, and inputs are copied to it, except in blocks."""
    operators = count("map", 1, device="cuda")
    half, full = torch.bfloat16, torch.float32
    places = [place for place, name in enumerate(operators.names) if name == "addcmul"]
    assert [operators.types[place] for place in places] == [
        *([([half] * 3, [half]), ([full, half, half], [full])] * 2),  # modulation and gate of attention and MLP
        ([half] * 3, [half]),  # before the head
    ]
    assert all(operators.names[place - 1] == "bmm" for place in places)  # which gathers, without a copy in between
