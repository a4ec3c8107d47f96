"""Training that starts from another checkpoint's weights, and from nothing else of it."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from asyncdiff.checkpoints import choose, read_checkpoint
from asyncdiff.training.compatibility import MEANING, Difference, check_recipe, check_weights, differences
from asyncdiff.training.fsdp2 import shard_like

DENOISER = "denoiser."  # where a model keeps what is trained
SHOWN = 4  # names in a report
ADDED = ("depth", "uncertainty", "level_patch_size")  # arguments that change no shape of weights that both have


def load_pretrained(model: Any, path: str | Path) -> None:
    """Give `model.denoiser` the weights of the checkpoint or export `path`, of averages the first where it has any.

    Weights that only one of them has are reported and stay as they are, such as those of a new uncertainty head; so is
    what the network, the process and the target were built with, where it differs. ValueError for other shapes, another
    class of network, and what gives the weights another meaning: patch size, channels, heads, number of classes.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"pretrained must be a checkpoint, got {path}, which does not exist: check it")
    checkpoint = read_checkpoint(path)
    given, own = _weights(checkpoint, path), model.denoiser.state_dict()
    found = differences(model, checkpoint["recipe"])
    shared = {name: weight for name, weight in given.items() if name in own}
    other_shapes = any(weight.shape != own[name].shape for name, weight in shared.items())
    check_recipe([one for one in found if _matters(one, other_shapes)], path, "train without model.pretrained")
    if not shared:
        raise ValueError(f"pretrained must hold weights of this network, got none in {path}: is it of another class?")
    check_weights({name: own[name] for name in shared}, shared, path)
    model.denoiser.load_state_dict({n: shard_like(w, own[n]) for n, w in shared.items()}, strict=False)
    for line in _report(path, given, own, found):
        rank_zero_info(f"pretrained: {line}")


def _matters(one: Difference, other_shapes: bool) -> bool:
    """Whether the weights mean nothing here; of differences that only some of the weights have, whether any has."""
    part, argument = one.name.removeprefix("model.").split(".")[0], one.name.rpartition(".")[2]
    if part != "network":
        return False
    if argument == "classes" and not (one.here and one.there):  # the table of the labels is new, or left out
        return False
    return argument in ("network", "classes", *MEANING) or (other_shapes and argument not in ADDED)


def _weights(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    state, _ = choose(checkpoint, "auto", path)
    return {name.removeprefix(DENOISER): weight for name, weight in state.items() if name.startswith(DENOISER)}


def _report(path: str | Path, given: dict[str, Tensor], own: dict[str, Tensor], found: list[Difference]) -> list[str]:
    lines = [f"{len(given.keys() & own.keys())} of {len(own)} weights are those of {path}"]
    if anew := [name for name in own if name not in given]:
        lines.append(f"not there, and as at the start: {_some(anew)}")
    if left := [name for name in given if name not in own]:
        lines.append(f"there, and left out: {_some(left)}")
    return [*lines, *(f"{one.name.removeprefix('model.')} is {one.here} here, {one.there} there" for one in found)]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
