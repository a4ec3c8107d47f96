"""The fake group of processes reduces as equal ranks do, refuses tensors of the wrong device, and counts waits."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from pretend_gpu.fake_ranks import FakeRanks, fake_ranks
from pretend_gpu.pretended_cuda import pretended_cuda
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture
def ranks() -> Iterator[FakeRanks]:
    with pretended_cuda() as watch, fake_ranks(watch) as ranks:
        yield ranks
    assert not dist.is_initialized()


def test_collectives_are_those_of_equal_ranks_and_wait_for_nothing(ranks: FakeRanks) -> None:
    x = torch.ones(2, device="cuda")
    dist.all_reduce(x)
    dist.broadcast(x, 0)
    parts = [torch.empty(2, device="cuda") for _ in range(2)]
    dist.all_gather(parts, x)
    whole, half = torch.empty(4, device="cuda"), torch.empty(1, device="cuda")
    dist.all_gather_into_tensor(whole, x)
    dist.reduce_scatter_tensor(half, x)
    dist.all_reduce(whole, dist.ReduceOp.MAX, async_op=True).wait()
    dist.all_reduce(parts[0], dist.ReduceOp.AVG)
    assert not ranks.watch.waits
    assert not ranks.watch.mixed
    assert ranks.calls == {"all_reduce": 3, "broadcast": 1, "all_gather": 2, "reduce_scatter": 1}
    assert (dist.get_backend(), dist.get_world_size()) == ("nccl", 2)
    assert [t.tolist() for t in (x, whole, half, *parts)] == [[2, 2], [2] * 4, [4], [2, 2], [2, 2]]


def test_nccl_refuses_tensors_of_the_host_and_gloo_those_of_the_gpu(ranks: FakeRanks) -> None:
    gloo = dist.new_group(backend="gloo")
    dist.all_reduce(torch.ones(2))
    assert [what for what, _ in ranks.watch.mixed] == ["all_reduce over nccl of tensors on the cpu"]
    dist.all_reduce(torch.ones(2, device="cuda"), group=gloo)
    assert [what for what, _ in ranks.watch.mixed[1:]] == ["all_reduce over gloo of tensors on the cuda"]
    dist.all_gather([torch.ones(1), torch.ones(1, device="cuda")], torch.ones(1, device="cuda"))
    assert len(ranks.watch.mixed) == 3


def test_barriers_objects_and_collectives_of_hosts_are_waits(ranks: FakeRanks) -> None:
    dist.barrier()
    assert len(ranks.watch.waits) == 1
    ranks.watch.clear()
    objects: list[object] = [None, None]
    dist.all_gather_object(objects, {"a": 1})
    assert objects == [{"a": 1}, {"a": 1}]
    assert ranks.watch.waits
    ranks.watch.clear()
    dist.broadcast_object_list([3])
    assert ranks.watch.waits
    ranks.watch.clear()
    gloo = dist.new_group(backend="gloo")
    dist.all_reduce(torch.ones(2), group=gloo)
    assert [what for what, _ in ranks.watch.waits] == ["all_reduce between hosts"]
    ranks.watch.clear()
    work = dist.all_reduce(torch.ones(2), group=gloo, async_op=True)
    ranks.watch.step()
    work.wait()
    assert not ranks.watch.waits


def test_data_parallel_training_averages_gradients_on_the_gpu(ranks: FakeRanks) -> None:
    plain = torch.nn.Linear(3, 2).cuda()
    wrapped = DistributedDataParallel(torch.nn.Linear(3, 2).cuda(), device_ids=[0])
    wrapped.module.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, device="cuda")
    for _ in range(3):
        ranks.watch.clear()
        for module in (plain, wrapped):
            module.zero_grad()
            module(x).square().sum().backward()
    assert not ranks.watch.waits
    assert not ranks.watch.mixed
    assert ranks.calls["all_reduce"] >= 3
    for own, other in zip(plain.parameters(), wrapped.module.parameters(), strict=True):
        assert other.grad.is_cuda
        assert torch.equal(own.grad, other.grad)
