"""What is remembered of a training step until it is known to be finite, and the file that tells of one that was not."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.training.optimization.gradients import nonfinite_names

NAMED = 20  # parameters that a file names, of thousands that a single bad image may reach


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step of one process: small tensors, wherever they are, and no images.

    Attributes:
        step: optimiser steps of the run, this one included.
        epoch: passes through the data before it.
        batches: what went into it, a mapping for every batch whose gradients were accumulated.
        gradients: the norm of every gradient, of shared out ones that of this process's share.
        names: the parameters of these gradients.
    """

    step: int
    epoch: int
    batches: Sequence[dict[str, Any]]
    gradients: Float[Tensor, " n"]
    names: Sequence[str] = field(repr=False)


def write_step_dump(
    folder: Path,
    record: StepRecord,
    *,
    module: nn.Module,
    files: Callable[[Sequence[int]], Sequence[str] | None],
    rank: int = 0,
    **facts: Any,
) -> Path:
    """The JSON file that tells of a step, step_N_rank_R.json in `folder`; OSError where it cannot be written.

    Numbers that are not finite stand in it as the words nan, inf and -inf, which every reader of JSON takes.

    Args:
        folder: made if need be.
        record: the step.
        module: what is trained, whose parameters are looked through.
        files: names of the files behind indices of the data, None where there are none.
        rank: of this process.
        facts: what else is to be told.
    """
    batches = [{name: _plain(value) for name, value in batch.items()} for batch in record.batches]
    for batch in batches:
        batch["files"] = files(batch["index"]) if batch.get("index") is not None else None
    wrong = [
        name for name, norm in zip(record.names, record.gradients.tolist(), strict=True) if not math.isfinite(norm)
    ]
    told = {
        "step": record.step,
        "epoch": record.epoch,
        "rank": rank,
        **facts,
        "loss_is_finite_here": all(math.isfinite(float(batch["loss"])) for batch in batches),
        "gradients_not_finite": wrong[:NAMED],
        "gradients_not_finite_count": len(wrong),
        "parameters_not_finite": nonfinite_names(module.named_parameters())[:NAMED],
        "batches": batches,
    }
    path = folder / f"step_{record.step}_rank_{rank}.json"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(told, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="ascii")  # JSON escapes the rest, also what is no valid text in names
    return path


def _plain(value: Any) -> Any:
    """Tensors as lists, and numbers that are not finite as words."""
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
