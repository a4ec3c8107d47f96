"""Work shared by the processes of torchrun or SLURM, with results gathered on the first one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=12)  # the first process to finish waits for the others, whose images may take long

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
        """Return this process's batches.

        The batches themselves do not depend on the number of processes, so that results do not even differ by rounding.
        """
        return batches[self.rank :: self.world]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank on the first process, an empty list on the others."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.gather_object(value, values if self.first else None)
        return values if self.first else []

    def gather_in_order(self, index: Tensor, rows: Tensor) -> Tensor:
        """Collect the rows of all processes on the first one.

        Args:
            index: (n,) position of each row.
            rows: (n, ...) rows of this process.

        Returns:
            All rows sorted by index on the first process, no rows on the others.
        """
        parts = self.gather((index.cpu(), rows.cpu()))
        if not parts:
            return rows[:0].cpu()
        order = torch.cat([index for index, _ in parts]).argsort()
        # A process without images does not know the length of a row.
        return torch.cat([rows for index, rows in parts if len(index)])[order]

    def broadcast(self, value: bool) -> bool:
        """Return the value of the first process."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Connect the processes that torchrun or SLURM started; without them, this process works alone.

    Args:
        device: cpu or cuda; with cuda, every process of a machine uses its own GPU.
    """
    rank, world, local = environment()
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", local % torch.cuda.device_count() if world > 1 else own.index or 0)
        torch.cuda.set_device(own)
    if world == 1:
        yield Ranks(0, 1, own)
        return
    # Features are gathered on the CPU; NCCL is for feature extractors that communicate themselves.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Ranks(rank, world, own)
    finally:
        dist.destroy_process_group()


def environment() -> tuple[int, int, int]:
    """Return (rank, world size, local rank) from the variables of torchrun, else of SLURM, else (0, 1, 0)."""
    from lightning.fabric.plugins.environments import SLURMEnvironment  # imported late because it imports Lightning

    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, world, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < world:
            raise ValueError(f"RANK must lie in [0, WORLD_SIZE), got {rank} of {world}: unset both")
        return rank, world, local
    if not SLURMEnvironment.detect():
        return 0, 1, 0
    slurm = SLURMEnvironment()
    os.environ.setdefault("MASTER_ADDR", slurm.main_address)
    os.environ.setdefault("MASTER_PORT", str(slurm.main_port))
    return slurm.global_rank(), slurm.world_size(), slurm.local_rank()
