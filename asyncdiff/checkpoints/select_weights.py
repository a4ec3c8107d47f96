"""Select the EMA weights or the raw weights of a checkpoint, and check that they fit a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from asyncdiff.checkpoints.loaded_tensors import OTHER_WEIGHTS, check_stored, check_tensors

Which = Literal["auto", "ema", "raw"]
WeightKind = Literal["ema", "raw"]


def choose_weights(
    checkpoint: Mapping[str, Any], which: Which, path: str | Path
) -> tuple[dict[str, Tensor], WeightKind]:
    """Select the EMA weights or the raw weights of a checkpoint.

    Args:
        checkpoint: contents of a checkpoint, from `read_checkpoint`.
        which: "ema" for the EMA weights (the first if there are several), "raw" for the raw weights (last step), "auto"
            for the EMA weights if there are any, otherwise the raw ones.
        path: path of the file, for error messages.

    Returns:
        The weights by name, and their kind: "ema" or "raw".

    Raises:
        ValueError: the file does not have the requested weights, or only describes them.
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
        check_stored(state, path, OTHER_WEIGHTS)
        return state, exported
    ema = next(iter(checkpoint.get("ema", {}).values()), None)
    if which == "ema" and ema is None:
        raise ValueError(f"{path} has no EMA weights, got weights='ema': use 'raw'")
    averaged = ema is not None and which != "raw"
    if averaged:
        state |= ema["weights"]  # type: ignore[index]
    check_stored(state, path, OTHER_WEIGHTS)
    return state, "ema" if averaged else "raw"


def check_weights(
    own: Mapping[str, Tensor], loaded: Mapping[str, Any], file: str | Path, remedy: str = OTHER_WEIGHTS
) -> None:
    """Raise ValueError unless the weights of a checkpoint fit a model: their names, shapes, and finite numbers.

    Args:
        own: weights of the model, with its parameters as such: `state_dict(keep_vars=True)`. Buffers may be infinite.
        loaded: weights of the checkpoint.
        file: path of the checkpoint.
        remedy: what to do if they are not finite.
    """
    shapes = [name for name in own if name in loaded and tuple(loaded[name].shape) != tuple(own[name].shape)]
    if shapes:
        name = shapes[0]
        more = f" ({len(shapes) - 1} more differ)" if len(shapes) > 1 else ""
        raise ValueError(
            f"{name} must have the shape {tuple(loaded[name].shape)} as in {file}, got {tuple(own[name].shape)}{more}: "
            "set the network's sizes to those of the checkpoint"
        )
    for missing_in, names in (
        (file, [name for name in own if name not in loaded]),
        ("the model", [name for name in loaded if name not in own]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"the model and {file} must have the same weights, but {names[0]}{more} {'are' if more else 'is'} "
                f"missing in {missing_in}: configure the network as in the checkpoint"
            )
    buffers = {name for name, weight in own.items() if not isinstance(weight, nn.Parameter)}
    check_tensors(loaded, file, remedy, buffers=buffers)
