"""Which of the weights in a checkpoint are taken."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Which = Literal["auto", "ema", "raw"]
Held = Literal["ema", "raw"]


def choose(checkpoint: dict[str, Any], which: Which, path: str | Path) -> tuple[dict[str, Tensor], Held]:
    """The named weights asked for, and which they are: averaged ones, "ema", or those of the last step, "raw".

    Args:
        checkpoint: as `read_checkpoint` gives it.
        which: "auto" takes the averaged ones where there are any, the first if several.
        path: of the file, for errors.

    Raises:
        ValueError: the file does not hold what was asked for.
    """
    if which not in ("auto", "ema", "raw"):
        raise ValueError(f"weights must be 'auto', 'ema' or 'raw', got {which!r}: leave it out for 'auto'")
    state = dict(checkpoint["state_dict"])
    if (export := checkpoint.get("export")) is not None:  # which has one set of weights
        held: Held = "ema" if export["weights"] == "ema" else "raw"
        if which not in ("auto", held):
            raise ValueError(f"weights must be 'auto' or {held!r} for the export {path}, got {which!r}: leave it out")
        return state, held
    averages = next(iter(checkpoint.get("ema", {}).values()), None)
    if which == "ema" and averages is None:
        raise ValueError(f"weights must not be 'ema' for {path}, a run without averages: use 'raw'")
    if which == "raw" or averages is None:
        return state, "raw"
    return state | averages["weights"], "ema"
