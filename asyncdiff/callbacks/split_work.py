"""Split work over the processes of a run by global image index, and gather the results in order."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor


def rank_indices(trainer: Trainer, count: int) -> list[int]:
    """Return the indices of this process, equally many on each: the last ones may repeat those of another process.

    Equal numbers keep processes in step whose networks communicate (FSDP); `gather_rows` drops the repetitions.
    """
    per_rank = -(-count // trainer.world_size)
    return [min(i * trainer.world_size + trainer.global_rank, count - 1) for i in range(per_rank)]


def gather_rows(trainer: Trainer, rows: Tensor, count: int) -> Tensor:
    """Gather the rows of all processes on the CPU of each, in the order of their indices, each once."""
    rows = rows.detach().float().cpu()
    if trainer.world_size == 1:
        return rows[:count]
    parts: list[Tensor] = [rows] * trainer.world_size
    dist.all_gather_object(parts, rows)
    return torch.stack(parts, dim=1).flatten(0, 1)[:count]


def run_distributed(
    trainer: Trainer, count: int, draw: Callable[[Sequence[int]], Float[Tensor, "b c h w"]]
) -> Float[Tensor, "b c h w"]:
    """Return `count` images made by `draw(indices)`; all processes share the work and get all of them."""
    return gather_rows(trainer, draw(rank_indices(trainer, count)), count)
