"""The pretended GPU sees each kind of wait and of mixed devices, and nothing where there is none."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_gpu.marks import CUDA, is_pinned, on_gpu
from pretend_gpu.pretended_cuda import pretended_cuda, run_on_both
from torch import Tensor


def on_device(*shape: int) -> Tensor:
    return torch.zeros(shape, device="cuda")


def event_of_this_step() -> None:
    event = torch.cuda.Event()
    event.record()
    event.synchronize()


def to_host(x: Tensor) -> Tensor:
    """Return a copy on its way to the host."""
    host = torch.empty(x.shape, pin_memory=True)
    return host.copy_(x, non_blocking=True)


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool(x.any()),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "index": lambda x: range(3)[x[0, 0].long()],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "as_tensor": lambda x: torch.as_tensor([1.0], device=x.device),
    "as_tensor of a tensor": lambda x: torch.as_tensor(torch.zeros(2), device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "unpinned": lambda x: torch.zeros(2).to(x.device, non_blocking=True),
    "blocking": lambda x: torch.zeros(2).pin_memory().to(x.device),
    "copy_ from the host": lambda x: x.copy_(torch.zeros(2, 3)),
    "copy_ to the host": lambda x: torch.zeros(2, 3).copy_(x),
    "copy_ to unpinned memory": lambda x: torch.zeros(2, 3).copy_(x, non_blocking=True),
    "mask": lambda x: x[x > 0],
    "values at a mask": lambda x: x.__setitem__(x == 0, on_device(6)),
    "list": lambda x: x[:, [0, 2]],
    "indices of the host": lambda x: x[:, torch.tensor([0, 2])],
    "number at indices": lambda x: x.__setitem__(torch.zeros(1, dtype=torch.long, device="cuda"), torch.tensor(1.0)),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x.clone()),
    "allclose": lambda x: torch.allclose(x, x),
    "repeat_interleave": lambda x: torch.repeat_interleave(torch.ones(2, dtype=torch.long, device="cuda")),
    "bincount": lambda x: x[0].long().bincount(),
    "one_hot of unknown size": lambda x: torch.nn.functional.one_hot(x.long()),
    "eigh": lambda x: torch.linalg.eigh(torch.eye(2, device=x.device)),
    "print": lambda x: str(x),
    "event": lambda x: event_of_this_step(),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "accelerator": lambda x: torch.accelerator.synchronize(),
    "stream": lambda x: torch.cuda.current_stream().synchronize(),
}

FREE: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (x + 1) * torch.tensor(2.0),
    "pinned": lambda x: torch.zeros(2).pin_memory().to(x.device, non_blocking=True),
    "pinned, made so": lambda x: torch.zeros(2, pin_memory=True).cuda(non_blocking=True),
    "copy_ from pinned memory": lambda x: x.copy_(torch.zeros(2, 3).pin_memory()[:], non_blocking=True),
    "copy_ to pinned memory": to_host,
    "as_tensor of a tensor that is there": lambda x: torch.as_tensor(x, device="cuda"),
    "full": lambda x: torch.full((2,), 1.0, device=x.device),
    "new": lambda x: (x.new_zeros(3), x.new_empty(2), torch.rand(2, device="cuda"), torch.ones_like(x)),
    "number at a mask": lambda x: x.__setitem__(x > 0, 1.0),
    "number in a slice": lambda x: x.__setitem__(0, 1.0),
    "indices of the device": lambda x: x[torch.zeros(2, dtype=torch.long, device="cuda")],
    "deepcopy": lambda x: copy.deepcopy([x, torch.nn.Linear(2, 2, device="cuda")]),
    "where of three": lambda x: torch.where(x > 0, x, torch.tensor(1.0)),
    "repeat_interleave of known size": lambda x: torch.repeat_interleave(
        torch.ones(2, dtype=torch.long, device="cuda"), output_size=2
    ),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.long(), 3),
    "host alone": lambda x: torch.zeros(3).unique().tolist(),
    "host from a shape": lambda x: torch.zeros_like(x, device="cpu").tolist(),
}

MIXED: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda x: x + torch.zeros(2, 3),
    "cat": lambda x: torch.cat([x, torch.zeros(2, 3)]),
    "stack with a number": lambda x: torch.stack([x[0, 0], torch.tensor(0.0)]),
    "embedding": lambda x: torch.nn.functional.embedding(torch.tensor([0]), x),
    "host by indices of the device": lambda x: torch.zeros(3)[x[0].long()],
    "generator of the host": lambda x: torch.rand(2, device="cuda", generator=torch.Generator()),
    "generator of the device": lambda x: torch.rand(2, device="cpu", generator=torch.Generator("cuda")),
    "in place": lambda x: x.normal_(generator=torch.Generator()),
    "numpy": lambda x: x.numpy(),
    "read too early": lambda x: to_host(x).tolist(),
    "used too early": lambda x: to_host(x) + 1,
    "to the host, used too early": lambda x: x.to("cpu", non_blocking=True).sum(),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_seen(name: str) -> None:
    with pretended_cuda() as watch:
        x = on_device(2, 3)
        WAITS[name](x)
    assert watch.waits
    assert not watch.mixed
    assert all("test_library.py:" in where for _, where in watch.waits), watch.waits


@pytest.mark.parametrize("name", FREE)
def test_nothing_else_waits(name: str) -> None:
    with pretended_cuda() as watch:
        FREE[name](on_device(2, 3))
    assert not watch.waits
    assert not watch.mixed


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_are_seen(name: str) -> None:
    with pretended_cuda() as watch:
        MIXED[name](on_device(2, 3))
    assert watch.mixed


def test_only_events_of_this_step_are_waited_for() -> None:
    with pretended_cuda() as watch:
        host, event = to_host(on_device(2)), torch.cuda.Event()
        event.record()
        assert not event.query()
        watch.step()
        assert event.query()
        event.synchronize()
        host.tolist()
    assert not watch.waits
    assert not watch.mixed


def test_a_copy_is_read_safely_after_an_event_recorded_later_only() -> None:
    with pretended_cuda() as watch:
        event = torch.cuda.Event()
        event.record()
        host = to_host(on_device(2))
        event.synchronize()
        host.tolist()
    assert [what for what, _ in watch.mixed] == ["memory of the host is used before the copy from the GPU has arrived"]


def test_marks_follow_tensors() -> None:
    with pretended_cuda():
        x = torch.zeros(2, 3).to("cuda").requires_grad_()
        module = torch.nn.Linear(3, 2, device="cuda")
        for y in (x.detach(), x[0].view(3, 1), x.T @ x, x.sum(), module.weight, module(x), torch.zeros(1, device=0)):
            assert y.device == CUDA
            assert y.is_cuda
        module(x).sum().backward()
        assert x.grad is not None
        assert x.grad.is_cuda
        assert not x.cpu().is_cuda
        assert torch.empty(3, pin_memory=True)[1:].is_pinned()
        assert not torch.empty(3).is_pinned()
        assert next(torch.nn.Linear(3, 2).cuda().parameters()).is_cuda
    assert on_gpu(x)
    assert not is_pinned(x)
    assert x.device.type == "cpu"  # the pretence has ended


def test_autocast_and_functions_of_cuda_are_answered() -> None:
    with pretended_cuda():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.accelerator.current_accelerator() == torch.device("cuda")
        assert torch.cuda.mem_get_info()[0] > 1e11
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.is_autocast_enabled("cuda")
            assert (on_device(2, 3) @ on_device(3, 2)).dtype == torch.bfloat16
        assert isinstance(torch.cuda.Event(), torch.cuda.Event)
    assert not torch.cuda.is_available() or torch.version.cuda


def test_both_runs_start_alike_and_backward_passes_are_seen() -> None:
    class Read(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            assert float(grad.sum()) > 0
            return grad + torch.zeros(2) if grad.is_cuda else grad

    def flow(device: torch.device, watch: Any) -> Tensor:
        x = torch.randn(2, device=device, requires_grad=True)
        watch.clear()
        Read.apply(x).sum().backward()
        return x

    watch, usual, cuda = run_on_both(flow)
    assert torch.equal(usual, cuda)
    assert len(watch.waits) == len(watch.mixed) == 1
    assert "test_library.py" in watch.waits[0][1]
