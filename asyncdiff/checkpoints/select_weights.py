"""Choose between the EMA weights and the raw weights of a checkpoint."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Which = Literal["auto", "ema", "raw"]
Chosen = Literal["ema", "raw"]


def choose_weights(checkpoint: dict[str, Any], which: Which, path: str | Path) -> tuple[dict[str, Tensor], Chosen]:
    """Return the requested weights by name.

    Args:
        checkpoint: contents as `read_checkpoint` returns them.
        which: "ema" for the EMA weights (the first if there are several), "raw" for the weights of the last step,
            "auto" for the EMA weights if there are any.
        path: path of the file, for errors.

    Returns:
        The weights, and "ema" or "raw" for which they are.

    Raises:
        ValueError: the file does not have the requested weights.
    """
    if which not in ("auto", "ema", "raw"):
        raise ValueError(f"weights must be 'auto', 'ema' or 'raw', got {which!r}: leave it out for 'auto'")
    state = dict(checkpoint["state_dict"])
    if (export := checkpoint.get("export")) is not None:  # an export has one set of weights
        exported: Chosen = "ema" if export["weights"] == "ema" else "raw"
        if which not in ("auto", exported):
            raise ValueError(
                f"weights must be 'auto' or {exported!r} for the export {path}, got {which!r}: leave it out"
            )
        return state, exported
    ema = next(iter(checkpoint.get("ema", {}).values()), None)
    if which == "ema" and ema is None:
        raise ValueError(f"weights must not be 'ema' for {path}, a run without EMA weights: use 'raw'")
    if which == "raw" or ema is None:
        return state, "raw"
    return state | ema["weights"], "ema"
