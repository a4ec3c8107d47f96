"""Start training from the weights of another checkpoint, without its optimizer state and step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from asyncdiff.checkpoints import check_weights, choose_weights, read_checkpoint
from asyncdiff.checkpoints.label_meaning import describe, same_labels
from asyncdiff.model import DENOISER, DiffusionModel
from asyncdiff.training.compatibility import SEMANTIC_ARGUMENTS, Difference, check_differences, differences
from asyncdiff.training.fsdp2 import shard_like

MAX_NAMES = 4  # maximum number of weights listed in a report
LABELS = "network.label_embedding."  # prefix of the weights that are learned per class
# Arguments that add or remove weights without changing the shapes of the others.
ADDITIVE_ARGUMENTS = ("depth", "uncertainty", "level_patch_size")


def load_pretrained(model: DiffusionModel, path: str | Path, labels: Mapping[str, Any] | None = None) -> None:
    """Load the weights of a checkpoint or an export into `model.denoiser`: the first EMA weights, if it has any.

    Weights that only the model has, such as those of a new uncertainty head, keep their initial values; so do the label
    embeddings if the data has other classes than the checkpoint. These, weights that only the checkpoint has, and
    differing arguments of network, process and target are reported.

    Args:
        model: model that is about to be trained.
        path: the checkpoint or export.
        labels: fingerprint of the data's classes; None if unknown.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: shapes, the class of the network, or arguments that change the meaning of the weights (patch size,
            channels, heads, number of classes) differ.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"pretrained must be an existing checkpoint or export, got {path}: check the path")
    checkpoint = read_checkpoint(path)
    loaded, own = _denoiser_weights(checkpoint, path), model.denoiser.state_dict(keep_vars=True)
    found = differences(model, checkpoint["recipe"])
    new_classes = bool(model.classes) and not same_labels(labels, checkpoint.get("labels"))
    shared = {n: w for n, w in loaded.items() if n in own and not (new_classes and n.startswith(LABELS))}
    other_shapes = any(weight.shape != own[name].shape for name, weight in shared.items())
    incompatible = [difference for difference in found if _is_incompatible(difference, other_shapes)]
    check_differences(incompatible, path, "train without model.pretrained")
    if not shared:
        raise ValueError(
            f"pretrained {path} contains no weights of this network: choose a checkpoint of the same network class"
        )
    check_weights({name: own[name] for name in shared}, shared, path)
    model.denoiser.load_state_dict({n: shard_like(w, own[n]) for n, w in shared.items()}, strict=False)
    lines = [f"loaded {len(shared)} of {len(own)} weights from {path}", *_report_lines(loaded, own, found)]
    if new_classes:
        there, here = describe(checkpoint["labels"]), describe(labels)
        start = "start from new values" if any(name.startswith(LABELS) for name in own) else "keep their values"
        lines.append(f"the classes are {here}, but {there} in the checkpoint: label embeddings {start}")
    for line in lines:
        rank_zero_info(f"pretrained: {line}")


def _is_incompatible(difference: Difference, other_shapes: bool) -> bool:
    """Return whether a difference makes the weights unusable; `other_shapes` says whether some shapes differ too."""
    part, argument = difference.name.removeprefix("model.").split(".")[0], difference.name.rpartition(".")[2]
    if part != "network":
        return False
    if argument == "classes" and not (difference.here and difference.there):  # the label embedding is added or dropped
        return False
    return argument in ("network", "classes", *SEMANTIC_ARGUMENTS) or (
        other_shapes and argument not in ADDITIVE_ARGUMENTS
    )


def _denoiser_weights(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    state, _ = choose_weights(checkpoint, "auto", path)
    return {name.removeprefix(DENOISER): weight for name, weight in state.items() if name.startswith(DENOISER)}


def _report_lines(loaded: dict[str, Tensor], own: dict[str, Tensor], found: list[Difference]) -> list[str]:
    lines = []
    if missing := [name for name in own if name not in loaded]:
        lines.append(f"not in the checkpoint, initialized: {_some(missing)}")
    if unused := [name for name in loaded if name not in own]:
        lines.append(f"not in the model, ignored: {_some(unused)}")
    return lines + [f"{d.name.removeprefix('model.')} is {d.here}, but {d.there} in the checkpoint" for d in found]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
