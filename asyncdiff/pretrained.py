"""Training that starts from another checkpoint's weights, and from nothing else of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from asyncdiff import recipe
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.strategies import laid_out

DENOISER = "denoiser."  # where a model keeps what is trained
SHOWN = 4  # names in a report


def load_pretrained(model: Any, path: str | Path) -> None:
    """Give `model.denoiser` the weights of the checkpoint `path`, the first of its averages where it has any.

    Weights that only one of them has are reported and stay as they are, such as those of a new uncertainty head; so is
    what the network, the process and the target were built with, where it differs. ValueError for other shapes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"pretrained must be a checkpoint, got {path}, which does not exist: check it")
    checkpoint = read_checkpoint(path)
    given, own = _weights(checkpoint), model.denoiser.state_dict()
    shared = {name: weight for name, weight in given.items() if name in own}
    if not shared:
        raise ValueError(f"pretrained must hold weights of this network, got none in {path}: is it of another class?")
    for name, weight in shared.items():
        if weight.shape != own[name].shape:
            raise ValueError(
                f"pretrained must have the network's shapes, got {tuple(weight.shape)} for {name}, which is "
                f"{tuple(own[name].shape)} here, in {path}: set the sizes of the network as there"
            )
    model.denoiser.load_state_dict({n: laid_out(w, own[n]) for n, w in shared.items()}, strict=False)
    for line in _report(path, given, own, _differences(model, checkpoint["recipe"])):
        rank_zero_info(f"pretrained: {line}")


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    state = dict(checkpoint["state_dict"])
    state |= next((average["weights"] for average in checkpoint.get("ema", {}).values()), {})
    return {name.removeprefix(DENOISER): weight for name, weight in state.items() if name.startswith(DENOISER)}


def _report(path: str | Path, given: dict[str, Tensor], own: dict[str, Tensor], differences: list[str]) -> list[str]:
    lines = [f"{len(given.keys() & own.keys())} of {len(own)} weights are those of {path}"]
    if anew := [name for name in own if name not in given]:
        lines.append(f"not there, and as at the start: {_some(anew)}")
    if left := [name for name in given if name not in own]:
        lines.append(f"there, and left out: {_some(left)}")
    return [*lines, *differences]


def _differences(model: Any, there: dict[str, Any]) -> list[str]:
    """What the network, the process and the target were built with, where here differs from there."""
    before = dict(_leaves({name: there["init_args"].get(name) for name in ("network", "process", "target")}))
    here = dict(_leaves({name: recipe.describe(getattr(model, name)) for name in ("network", "process", "target")}))
    changed = [name for name in here if name in before and before[name] != here[name]]
    return [f"{name} is {here[name]} here, {before[name]} there" for name in changed]


def _leaves(described: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a recipe with their dotted names."""
    for name, value in described.items():
        dotted = within if name in ("init_args", "class_path") else f"{within}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _leaves(value, dotted)
        elif value is not None:
            yield dotted, value


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
