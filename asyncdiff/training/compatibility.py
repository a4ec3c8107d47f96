"""Checkpoints, data and models that do not belong together, refused in one line: both values, the file, the remedy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asyncdiff.checkpoints import object_config
from asyncdiff.latents.codec import COMPARED

PARTS = ("network", "process", "target")  # of a model: what its weights mean
# Arguments of networks by which nothing changes that is learned or computed.
HARMLESS = ("dropout", "checkpointing")
# Arguments of networks that make the same weights mean something else; others are told by the shapes.
MEANING = ("channels", "patch_size", "heads", "head_dim", "groups")
SHOWN = 3  # names of further differences
HASH = 12  # characters of a hash that are shown
MISSING = object()


@dataclass(frozen=True)
class Difference:
    """A value that is another in a checkpoint.

    Attributes:
        name: dotted, as in the YAML files.
        here: the model's.
        there: the checkpoint's.
    """

    name: str
    here: Any
    there: Any


def differences(model: Any, described: Mapping[str, Any]) -> list[Difference]:
    """What of the model's network, process, target and image size differs from a checkpoint's recipe.

    What one of them lacks, since its class has learned a new argument say, is passed over. Where a class differs, its
    arguments are not compared.
    """
    there = described.get("init_args", {})
    found: list[Difference] = []
    for part in PARTS:
        if there.get(part) is not None:
            found += _differences(f"model.{part}", _described(getattr(model, part)), there[part])
    found = [one for one in found if one.name.rpartition(".")[2] not in HARMLESS]
    if "image_size" in there and there["image_size"] != model.image_size:
        found.append(Difference("model.image_size", model.image_size, there["image_size"]))
    return found


def check_recipe(found: list[Difference], file: str | Path, otherwise: str) -> None:
    """Raise ValueError for the first of the differences, and name the others.

    Args:
        found: of `differences`.
        file: the checkpoint.
        otherwise: what to do where the model is as it is meant to be.
    """
    if not found:
        return
    first, *others = found
    names = ", ".join(one.name for one in others[:SHOWN]) + (" and more" if len(others) > SHOWN else "")
    also = f" ({names} {'differ' if len(others) > 1 else 'differs'}, too)" if others else ""
    raise ValueError(
        f"{first.name} must be {_told(first.there)} as in {file}, got {_told(first.here)}{also}: "
        f"set it to {_told(first.there)}, or {otherwise}"
    )


def check_weights(own: Mapping[str, torch.Tensor], given: Mapping[str, Any], file: str | Path) -> None:
    """Raise ValueError unless the weights of a checkpoint have the names and shapes of the model's."""
    shapes = [name for name in own if name in given and tuple(given[name].shape) != tuple(own[name].shape)]
    if shapes:
        name = shapes[0]
        more = f" (and {len(shapes) - 1} more are others)" if len(shapes) > 1 else ""
        raise ValueError(
            f"the weights of {file} must have the model's shapes, got {tuple(given[name].shape)} for {name}, which is "
            f"{tuple(own[name].shape)} here{more}: set the sizes of the network as there"
        )
    for what, names in (("lacks", [n for n in own if n not in given]), ("has", [n for n in given if n not in own])):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            here, there = ("has", "lacks") if what == "lacks" else ("lacks", "has")
            raise ValueError(
                f"the weights of {file} must be those of this model, which {here} {names[0]}{more}, got a file that "
                f"{there} {'them' if more else 'it'}: set the network as it was there"
            )


def check_checkpoint(model: Any, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError unless a checkpoint is one that the trainer of `model` may load into it.

    Learning rate, level sampler, weighting, sampler, dropout and the like may be others.
    """
    trainer = model._trainer
    file = (trainer.ckpt_path if trainer is not None else None) or "the checkpoint"
    fitting = trainer is not None and trainer.state.fn == "fit"
    if fitting and "export" in checkpoint:
        raise ValueError(
            f"ckpt_path must be a checkpoint of a run, got {file}, an export, which has no state of the optimiser: "
            "leave it out, and give it as model.pretrained to train on from its weights"
        )
    if "recipe" not in checkpoint:
        raise ValueError(
            f"ckpt_path must be a checkpoint of AsyncDiffusion, got {file}, which does not say how to "
            "rebuild its model: take another"
        )
    otherwise = "start anew without ckpt_path" if fitting else "name a checkpoint of this model"
    check_recipe(differences(model, checkpoint["recipe"]), file, otherwise)
    if "state_dict" in checkpoint:  # which a strategy that shares the network out has loaded before
        check_weights(model.state_dict(), checkpoint["state_dict"], file)
    know_latents(model, there=checkpoint.get("latents"))
    know_latents(model, here=getattr(getattr(trainer, "datamodule", None), "codec", None))


def check_data(model: Any) -> None:
    """Raise ValueError unless the data of the trainer of `model` has the number of classes that its network knows.

    The shape of images is checked with every batch.
    """
    known = getattr(getattr(model._trainer, "datamodule", None), "classes", None)
    if model.classes and known is not None and known != model.classes:
        raise ValueError(
            f"network.classes must be the data's number of classes {known}, got {model.classes}: "
            "set it, or 0 to ignore the labels"
        )


def know_latents(model: Any, **identities: Mapping[str, Any] | None) -> None:
    """Keep which latents the model is of, and raise ValueError where those of its checkpoint are others.

    Args:
        model: has a dictionary `latents` of what is known.
        identities: of codecs: `here`, of the data or of the model's codec; `there`, of the checkpoint. None or empty
            where nothing is known.
    """
    model.latents.update({where: dict(identity) for where, identity in identities.items() if identity})
    here, there = model.latents.get("here", {}), model.latents.get("there", {})
    for key in COMPARED:
        if key in here and key in there and _plain(here[key]) != _plain(there[key]):
            file = (model._trainer.ckpt_path if model._trainer is not None else None) or "the checkpoint"
            raise ValueError(
                f"latents must be of the codec that {file} was trained on, with {key} {_short(there[key])}, got "
                f"{_short(here[key])}: give the data and model.codec of that run, or start anew without ckpt_path"
            )


def _differences(name: str, here: Any, there: Any) -> Iterator[Difference]:
    """The differences of two descriptions, class paths first."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        if _plain(here) != _plain(there):
            yield Difference(name, here, there)
        return
    if here.get("class_path") != there.get("class_path"):
        yield Difference(name, here.get("class_path", here), there.get("class_path", there))
        return
    inner, outer = (held.get("init_args", {}) if "class_path" in held else held for held in (here, there))
    for key, value in inner.items():
        other = outer.get(key, MISSING)
        if other is not MISSING:
            yield from _differences(f"{name}.{key}", value, other)


def _described(value: Any) -> Any:
    """The recipe of a part; of one that does not keep its arguments the class alone."""
    try:
        return object_config.describe(value)
    except TypeError:
        kind = type(value)
        return {"class_path": object_config.class_path(kind)}


def _plain(value: Any) -> Any:
    """Tuples as lists, as files give them back."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _told(value: Any) -> str:
    """A value as it stands in a YAML file."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> Any:
    return value[:HASH] if isinstance(value, str) else value
