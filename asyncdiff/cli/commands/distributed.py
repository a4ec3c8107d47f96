"""Work shared by the processes of torchrun or SLURM, put together on the first of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=12)  # the first to finish waits for the others, whose images may take long

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: its number; 0 tells and writes.
        world: how many there are.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that tells and writes."""
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """This process's batches. They are the same for any number of processes, so that rounding is, too."""
        return batches[self.rank :: self.world]

    def gathered(self, held: T) -> list[T]:
        """What every process holds, in their order, on the first; nothing on the others."""
        if self.world == 1:
            return [held]
        found: list[Any] = [None] * self.world
        dist.gather_object(held, found if self.first else None)
        return found if self.first else []

    def in_order(self, index: Tensor, rows: Tensor) -> Tensor:
        """The rows of all processes by their index, on the first; no rows on the others."""
        parts = self.gathered((index.cpu(), rows.cpu()))
        if not parts:
            return rows[:0].cpu()
        order = torch.cat([index for index, _ in parts]).argsort()
        # A process without images does not know how long a row is.
        return torch.cat([rows for index, rows in parts if len(index)])[order]

    def agreed(self, word: bool) -> bool:
        """What the first process says."""
        words = [word]
        if self.world > 1:
            dist.broadcast_object_list(words)
        return words[0]


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """This process among those that torchrun or SLURM started, alone without; connected inside.

    Args:
        device: cpu, or cuda, of which every process of a machine takes its own.
    """
    rank, world, local = environment()
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", local % torch.cuda.device_count() if world > 1 else own.index or 0)
        torch.cuda.set_device(own)
    if world == 1:
        yield Ranks(0, 1, own)
        return
    # Features are gathered on the CPU; NCCL is there for whatever a network of features may want to exchange.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Ranks(rank, world, own)
    finally:
        dist.destroy_process_group()


def environment() -> tuple[int, int, int]:
    """(rank, processes, number on this machine) from torchrun's variables, else from SLURM's, else alone."""
    from lightning.fabric.plugins.environments import SLURMEnvironment  # late: it loads Lightning

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
