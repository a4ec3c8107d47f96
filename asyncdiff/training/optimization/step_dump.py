"""Record training steps, and write a step to a JSON file if it is not finite and ends the run."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.training.optimization.gradients import nonfinite_names

MAX_NAMES = 20  # maximum number of parameters listed in a file; a single bad image may affect thousands


@dataclass(frozen=True)
class StepRecord:
    """Record of one optimizer step of one process: small tensors, on their devices, and no images.

    Attributes:
        step: number of optimizer steps of the run, including this one.
        epoch: number of completed passes through the data.
        batches: one mapping per accumulated batch, with its loss and the info given to `StepGuard.watch`.
        gradients: norm of every gradient; for sharded ones, the norm of this process's shard.
        names: names of the parameters with these gradients.
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
    **info: Any,
) -> Path:
    """Write the record of a step to `folder`/step_N_rank_R.json; raise OSError if it cannot be written.

    Numbers that are not finite are written as the strings nan, inf and -inf, which every JSON reader accepts.

    Args:
        folder: folder of the file, created if needed.
        record: record of the step.
        module: module being trained, whose parameters are checked.
        files: returns the file names of dataset indices; None if the images have no files.
        rank: global rank of this process.
        **info: further entries to write to the file.

    Returns:
        The path of the file.
    """
    batches = [{name: _to_json(value) for name, value in batch.items()} for batch in record.batches]
    for batch in batches:
        batch["files"] = files(batch["index"]) if batch.get("index") is not None else None
    nonfinite = [
        name for name, norm in zip(record.names, record.gradients.tolist(), strict=True) if not math.isfinite(norm)
    ]
    content = {
        "step": record.step,
        "epoch": record.epoch,
        "rank": rank,
        **info,
        "loss_is_finite_here": all(math.isfinite(float(batch["loss"])) for batch in batches),
        "gradients_not_finite": nonfinite[:MAX_NAMES],
        "gradients_not_finite_count": len(nonfinite),
        "parameters_not_finite": nonfinite_names(module.named_parameters())[:MAX_NAMES],
        "batches": batches,
    }
    path = folder / f"step_{record.step}_rank_{rank}.json"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    # JSON escapes other characters, including those of file names that are not valid text.
    path.write_text(text + "\n", encoding="ascii")
    return path


def _to_json(value: Any) -> Any:
    """Convert tensors to lists, and numbers that are not finite to strings."""
    if isinstance(value, Tensor):
        return _to_json(value.detach().cpu().tolist())
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
