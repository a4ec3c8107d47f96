"""Gradients of a whole step, also where every process has a share of them: their size, and whether they are finite."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asyncdiff.training.fsdp2 import local_shard


def nan_gradient_if_nonfinite(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The loss, bit for bit, with a gradient that is NaN where the loss is not finite.

    By itself an infinite loss may have a finite gradient, or one that is 0. Once gradients are summed over processes a
    NaN is seen by all of them.
    """
    # A factor without a gradient of its own: 0 times the NaN of an untaken branch of `where` would be NaN.
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)


def gradient_norms(gradients: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """The norm of every gradient in float32 at least; of shared out ones that of this process's share.

    Half precision has no numbers for the squares of gradients that it has numbers for.
    """
    wide = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    return torch.stack(torch._foreach_norm([local_shard(g) for g in gradients], 2, dtype=wide))


def total_norm(norms: Float[Tensor, " n"], gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The norm of all gradients together, from that of each: the same on every process that has a share of them."""
    shared = [isinstance(g, DTensor) for g in gradients]
    if not any(shared):
        return torch.linalg.vector_norm(norms)
    squares, whole = norms.square(), [not share for share in shared]
    total = squares[shared].sum() if not all(shared) else squares.sum()
    torch.distributed.all_reduce(total)
    return (total if all(shared) else total + squares[whole].sum()).sqrt()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], limit: float, algorithm: str | None, norm: Float[Tensor, ""]
) -> None:
    """Clip gradients in place as Lightning does: each entry by "value", or else all together, whose norm is `norm`."""
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, limit)
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; of shared out ones this process's share is looked at.

    Waits for the device once, whatever their number.
    """
    named = [(name, local_shard(tensor.detach())) for name, tensor in tensors]
    if not named:
        return []
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named])
    return [name for (name, _), fine in zip(named, finite.tolist(), strict=True) if not fine]


def check_finite(tensors: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """ValueError, on all processes, if a weight is NaN or infinite on any of them: all have to call this."""
    wrong = nonfinite_names(tensors)
    if not any_process(torch.tensor(len(wrong) > 0, device=device)):
        return
    where = wrong[0] if wrong else "another process's share"
    raise ValueError(
        f"weights must be finite to be saved, got NaN or infinity in {where}: the checkpoints before this are kept, go "
        "on from one of them with a lower learning_rate or gradient_clip_val"
    )


def any_process(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether the flag is set on any process: all have to call this."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return flag
    told = flag.int()
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return told > 0
