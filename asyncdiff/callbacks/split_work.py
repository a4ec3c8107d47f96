"""Split work over the processes of a run by global image index, and gather the results in order."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


def rank_indices(trainer: Trainer, count: int) -> list[int]:
    """Return the image indices of this process, the same number on each; the last may duplicate another process's.

    With equal numbers, processes whose networks communicate (FSDP) stay in step. `gather_rows` drops the duplicates.
    """
    per_rank = -(-count // trainer.world_size)
    return [min(i * trainer.world_size + trainer.global_rank, count - 1) for i in range(per_rank)]


def gather_rows(trainer: Trainer, rows: Tensor, count: int) -> Tensor:
    """Gather the rows of all processes on the CPU of each, in the order of their indices, without duplicates."""
    rows = rows.detach().float()
    parts = gather_all_tensors(rows.to(trainer.strategy.root_device)) if trainer.world_size > 1 else [rows]
    return torch.stack(parts, dim=1).flatten(0, 1)[:count].cpu()


def run_distributed(
    trainer: Trainer, count: int, draw: Callable[[Sequence[int]], Float[Tensor, "b c h w"]]
) -> Float[Tensor, "b c h w"]:
    """Return `count` images made by `draw(indices)`; the processes share the work, and each gets all images."""
    return gather_rows(trainer, draw(rank_indices(trainer, count)), count)
