"""Share work between the processes of torchrun or SLURM, and gather the results on the first one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.checks import environment_integer

TIMEOUT = timedelta(hours=12)  # a process that finishes early waits for the others, which may take long

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process and the processes that it shares work with.

    Attributes:
        rank: index of this process; process 0 prints and writes.
        world: number of processes.
        device: device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the batches.

        The batches themselves do not depend on the number of processes, so that results do not even differ by rounding.
        """
        return batches[self.rank :: self.world]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank, on the first process; an empty list on the others."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.gather_object(value, values if self.first else None)
        return values if self.first else []

    def gather_in_order(self, index: Tensor, values: Tensor) -> Tensor:
        """Concatenate the values of all processes on the first one.

        Args:
            index: (n,) position of each value in the result.
            values: (n, ...) values of this process.

        Returns:
            All values sorted by index on the first process, an empty tensor on the others.
        """
        parts = self.gather((index.cpu(), values.cpu()))
        if not parts:
            return values[:0].cpu()
        order = torch.cat([index for index, _ in parts]).argsort()
        # Processes without images are left out, because they do not know the shape of a value.
        return torch.cat([values for index, values in parts if len(index)])[order]

    def broadcast(self, value: bool) -> bool:
        """Return the first process's value on all processes."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Connect the processes started by torchrun or SLURM; without either, this process works alone.

    Args:
        device: device such as cpu or cuda; with cuda, every process on a machine uses its own GPU.
    """
    rank, world, local = environment()
    own_device = torch.device(device)
    if own_device.type == "cuda":
        own_device = torch.device("cuda", local % torch.cuda.device_count() if world > 1 else own_device.index or 0)
        torch.cuda.set_device(own_device)
    if world == 1:
        yield Ranks(0, 1, own_device)
        return
    # Features are gathered on the CPU; NCCL serves feature extractors that communicate between GPUs.
    backend = "cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Ranks(rank, world, own_device)
    finally:
        dist.destroy_process_group()


def environment() -> tuple[int, int, int]:
    """Return (rank, world size, local rank) as set by torchrun or SLURM; (0, 1, 0) without either."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, world, local = map(environment_integer, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < world:
            raise ValueError(f"RANK must lie in [0, WORLD_SIZE), got RANK {rank} with WORLD_SIZE {world}: unset both")
        return rank, world, local
    if "SLURM_NTASKS" not in os.environ:
        return 0, 1, 0
    from lightning.fabric.plugins.environments import SLURMEnvironment  # imported late because it imports Lightning

    if not SLURMEnvironment.detect():
        return 0, 1, 0
    slurm = SLURMEnvironment()
    os.environ.setdefault("MASTER_ADDR", slurm.main_address)
    os.environ.setdefault("MASTER_PORT", str(slurm.main_port))
    return slurm.global_rank(), slurm.world_size(), slurm.local_rank()
