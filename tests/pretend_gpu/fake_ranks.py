"""A fake group of processes: this one is a rank, and all others hold the same tensors and do the same.

Collectives over the group of the GPUs refuse tensors of the host, as NCCL does, and make no host wait; those over a
group of backend gloo refuse tensors of the GPU. Results are those of ranks that all have what this one has: a sum over
two ranks doubles. Barriers and collectives between hosts are waits, unless they began in an earlier step.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from pretend_gpu.marks import device_of, on_gpu, put_on_gpu, tensors_of
from pretend_gpu.pretended_cuda import made_on_gpu
from pretend_gpu.watch import Watch
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import distributed as data_parallel
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

DEVICES = {"cpu": "gloo", "cuda": "nccl"}
ReduceOp = dist.ReduceOp.RedOpType


class FakeRanks:
    """What the fake group was asked for.

    Attributes:
        world_size: number of ranks.
        calls: number of collectives by name; those over gloo begin with "gloo ".
        watch: where mixed devices and waits are recorded.
    """

    def __init__(self, world_size: int, watch: Watch):
        self.world_size, self.watch = world_size, watch
        self.calls: Counter[str] = Counter()


class _HostWork(dist._Work):  # type: ignore[misc, name-defined]
    """Collective between hosts, for which `wait` blocks."""

    def __init__(self, watch: Watch, name: str):
        super().__init__()
        self._watch, self._name, self._step = watch, name, watch.steps

    def wait(self, timeout: Any = None) -> bool:
        if self._step == self._watch.steps:
            self._watch.wait(f"{self._name} between hosts")
        return True

    def is_completed(self) -> bool:
        return self._step < self._watch.steps


class _Group(dist.ProcessGroup):
    """Process group whose other ranks do and hold the same as this one."""

    def __init__(self, rank: int, ranks: FakeRanks, world_size: int, backend: str):
        super().__init__(rank, world_size)
        self._rank, self._ranks, self._world_size, self._backend = rank, ranks, world_size, backend

    def size(self) -> int:
        return self._world_size

    def rank(self) -> int:
        return self._rank

    def getBackendName(self) -> str:
        return f"fake {self._backend}"  # DDP would look for the real one

    @property
    def pg_name(self) -> str:
        return c10d._world.pg_names[self]

    @property
    def group_name(self) -> str:
        return self.pg_name

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(kind) for kind, backend in DEVICES.items() if backend in self._backend]

    def shutdown(self) -> None: ...

    def _work(self, name: str, tensors: Any, result: Any) -> Any:
        """Check the devices of a collective's tensors, and return its handle."""
        kinds = {device_of(x).type for x in tensors_of(tensors)}
        for kind in kinds - {device.type for device in self._device_types}:
            self._ranks.watch.mix(f"{name} over {self._backend} of tensors on the {kind}")
        host = "cpu" in kinds
        self._ranks.calls[f"gloo {name}" if host else name] += 1
        if host:
            return _HostWork(self._ranks.watch, name)
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(result)
        return _create_work_from_future(future)

    @torch.no_grad()
    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        """Reduce in place over ranks that all hold `x`."""
        operation = getattr(operation, "op", operation)
        if operation == ReduceOp.SUM:
            x.mul_(self._world_size)
        elif operation == ReduceOp.PRODUCT:
            x.pow_(self._world_size)
        elif operation == ReduceOp.BXOR and self._world_size % 2 == 0:
            x.zero_()
        return x

    def _make(self, output: Tensor, x: Tensor) -> None:
        """Mark a result that a functional collective of PyTorch, such as those of DTensor, has just made unseen."""
        if not _get_current_dispatch_mode_stack():
            put_on_gpu(output, on_gpu(x))

    @torch.no_grad()
    def _repeat(self, outputs: list[Tensor], x: Tensor) -> None:
        for output in outputs:
            output.copy_(x.view_as(output))

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        for x in tensors:
            self._reduce(x, opts.reduceOp if opts is not None else ReduceOp.SUM)
        return self._work("all_reduce", tensors, tensors)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Any:
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        if opts.rootRank == self._rank:
            self._reduce(tensors[0], opts.reduceOp)
        return self._work("reduce", tensors, tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Any:
        return self._work("broadcast", tensors, tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, x in zip(outputs, inputs, strict=True):
            self._repeat(output, x)
        return self._work("all_gather", (outputs, inputs), outputs)

    def all_gather_single(self, output: Tensor, x: Tensor, opts: Any = None) -> Any:
        self._make(output, x)
        self._repeat(list(output.chunk(self._world_size)), x)
        return self._work("all_gather", (output, x), output)

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        return [self.all_gather_single(output, x) for output, x in zip(outputs, inputs, strict=True)][-1]

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        for output in outputs:
            self._repeat(output, inputs[0])
        return self._work("gather", (outputs, inputs), outputs)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        for parts in inputs:
            self._repeat(outputs, parts[self._rank])
        return self._work("scatter", (outputs, inputs), outputs)

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        for output, parts in zip(outputs, inputs, strict=True):
            self._repeat([output], parts[self._rank])
            self._reduce(output, opts.reduceOp if opts is not None else ReduceOp.SUM)
        return self._work("reduce_scatter", (outputs, inputs), outputs)

    def reduce_scatter_single(self, output: Tensor, x: Tensor, opts: Any = None) -> Any:
        self._make(output, x)
        return self.reduce_scatter([output], [list(x.chunk(self._world_size))], opts)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output in outputs:
            self._repeat([output], inputs[self._rank])
        return self._work("all_to_all", (outputs, inputs), outputs)

    def barrier(self, opts: Any = None) -> Any:
        self._ranks.watch.wait("barrier")
        return self._work("barrier", (), None)

    # Earlier and later names of PyTorch for the same.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced


class _Reducer(dist.Reducer):  # type: ignore[misc, name-defined]
    """Reducer of DDP, whose buckets are on the GPU."""

    def __init__(self, *args: Any, **kwargs: Any):
        with made_on_gpu():
            super().__init__(*args, **kwargs)

    def _rebuild_buckets(self) -> bool:
        with made_on_gpu():
            return bool(super()._rebuild_buckets())


@contextmanager
def fake_ranks(watch: Watch, world_size: int = 2, backend: str = "nccl") -> Iterator[FakeRanks]:
    """Be rank 0 of several ranks, with one process per GPU; for use inside `pretended_cuda`."""
    ranks = FakeRanks(world_size, watch)

    def new_group(
        size: int, rank: int | None, of: list[int], backend: str, store: dist.Store, name: str, *_: Any, **__: Any
    ) -> tuple[Any, dist.Store | None]:
        if rank is None:
            return dist.GroupMember.NON_GROUP_MEMBER, None
        group = _Group(rank, ranks, size, str(backend))
        c10d._world.pg_map[group] = (backend, store)
        c10d._world.pg_names[group] = name
        c10d._world.pg_backend_config[group] = str(c10d.BackendConfig(backend))
        c10d._world.pg_to_tag[group] = f"ptd:{name}"
        for tag in ("", f"ptd:{name}"):
            c10d._world.tags_to_pg.setdefault(tag, []).append(group)
        c10d._register_process_group(name, group)
        return group, store

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(c10d, "_new_process_group_helper", new_group))
        stack.enter_context(mock.patch.object(c10d, "_store_based_barrier"))
        stack.enter_context(mock.patch.object(data_parallel, "_verify_param_shape_across_processes"))
        stack.enter_context(mock.patch.object(dist, "Reducer", _Reducer))
        dist.init_process_group(backend, rank=0, world_size=world_size, store=dist.HashStore())
        stack.callback(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
        yield ranks
