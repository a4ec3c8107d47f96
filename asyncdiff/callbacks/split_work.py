"""Work shared out over the processes of a run by the global index of an image, and put together again in order."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor


def rank_indices(trainer: Trainer, count: int) -> list[int]:
    """The indices that this process takes, equally many in each: the last ones may repeat what another one has.

    Equal shares keep processes in step whose networks communicate (FSDP); `gather_rows` drops the repetitions.
    """
    each = -(-count // trainer.world_size)
    return [min(i * trainer.world_size + trainer.global_rank, count - 1) for i in range(each)]


def gather_rows(trainer: Trainer, rows: Tensor, count: int) -> Tensor:
    """The rows of all processes' shares in the order of their index, each once, on the CPU of every process."""
    rows = rows.detach().float().cpu()
    if trainer.world_size == 1:
        return rows[:count]
    parts: list[Tensor] = [rows] * trainer.world_size
    dist.all_gather_object(parts, rows)
    return torch.stack(parts, dim=1).flatten(0, 1)[:count]


def run_distributed(
    trainer: Trainer, count: int, draw: Callable[[Sequence[int]], Float[Tensor, "b c h w"]]
) -> Float[Tensor, "b c h w"]:
    """`count` images made by `draw(indices)`, the work shared by all processes, the result on every one."""
    return gather_rows(trainer, draw(rank_indices(trainer, count)), count)
