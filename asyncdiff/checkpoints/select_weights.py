"""Select the EMA weights or the raw weights of a checkpoint."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Which = Literal["auto", "ema", "raw"]
WeightKind = Literal["ema", "raw"]


def choose_weights(checkpoint: dict[str, Any], which: Which, path: str | Path) -> tuple[dict[str, Tensor], WeightKind]:
    """Select the EMA weights or the raw weights of a checkpoint.

    Args:
        checkpoint: contents of a checkpoint, from `read_checkpoint`.
        which: "ema" for the EMA weights (the first if there are several), "raw" for the raw weights (last step), "auto"
            for the EMA weights if there are any, otherwise the raw ones.
        path: path of the file, for error messages.

    Returns:
        The weights by name, and their kind: "ema" or "raw".

    Raises:
        ValueError: the file does not have the requested weights.
    """
    if which not in ("auto", "ema", "raw"):
        raise ValueError(f"weights must be 'auto', 'ema' or 'raw', got {which!r}: omit it for 'auto'")
    state = dict(checkpoint["state_dict"])
    if (export := checkpoint.get("export")) is not None:  # an export has one set of weights
        exported: WeightKind = "ema" if export["weights"] == "ema" else "raw"
        if which not in ("auto", exported):
            raise ValueError(
                f"the export {path} contains {exported} weights only, got weights={which!r}: use 'auto' or {exported!r}"
            )
        return state, exported
    ema = next(iter(checkpoint.get("ema", {}).values()), None)
    if which == "ema" and ema is None:
        raise ValueError(f"{path} has no EMA weights, got weights='ema': use 'raw'")
    if which == "raw" or ema is None:
        return state, "raw"
    return state | ema["weights"], "ema"
