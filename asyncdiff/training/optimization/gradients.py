"""Compute gradient norms and check for NaN and infinity, also with sharded parameters."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from asyncdiff.training.fsdp2 import local_shard


def nan_gradient_if_nonfinite(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the same loss, bit for bit, but with a NaN gradient if the loss is not finite.

    By itself, the gradient of an infinite loss may be finite, even 0. Once gradients are summed over processes, all of
    them see the NaN.
    """
    # A factor without gradient: with `where` on the loss itself, 0 times the NaN of the other branch would be NaN.
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)


def gradient_norms(gradients: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """Return the norm of every gradient, in float32 or wider; for sharded ones, the norm of this process's shard.

    In half precision the squares of representable gradients may overflow.
    """
    wide = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    return torch.stack(torch._foreach_norm([local_shard(g) for g in gradients], 2, dtype=wide))


def total_norm(norms: Float[Tensor, " n"], gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the norm of all gradients together from the norm of each; it is equal on all processes."""
    sharded = [isinstance(g, DTensor) for g in gradients]
    if not any(sharded):
        return torch.linalg.vector_norm(norms)
    squares, replicated = norms.square(), [not value for value in sharded]
    total = _selected(squares, sharded).sum()
    torch.distributed.all_reduce(total)
    return (total + _selected(squares, replicated).sum() if any(replicated) else total).sqrt()


def _selected(values: Float[Tensor, " n"], selected: Sequence[bool]) -> Float[Tensor, " m"]:
    """Return the selected values; an index of bools would be copied from the host, which waits for the device."""
    if all(selected):
        return values
    return torch.stack([value for value, is_selected in zip(values.unbind(), selected, strict=True) if is_selected])


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors that contain NaN or infinity; for sharded ones, only this process's shard is checked.

    Synchronizes with the device once, however many tensors there are.
    """
    named = [(name, local_shard(tensor.detach())) for name, tensor in tensors]
    if not named:
        return []
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named])
    return [name for (name, _), is_finite in zip(named, finite.tolist(), strict=True) if not is_finite]


def check_finite(tensors: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Raise ValueError on all processes if a weight is NaN or infinite on any of them; all processes must call this."""
    nonfinite = nonfinite_names(tensors)
    if not any_process(torch.tensor(len(nonfinite) > 0, device=device)):
        return
    where = nonfinite[0] if nonfinite else "another process's shard"
    raise ValueError(
        f"weights must be finite to be saved, got NaN or infinity in {where}: resume from an earlier checkpoint "
        "with a lower optimizer.learning_rate or gradient_clip_val"
    )


def any_process(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Return whether the flag is set on any process; all processes must call this."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return flag
    value = flag.int()
    distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
    return value > 0
