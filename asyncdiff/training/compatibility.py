"""Check that a checkpoint, the data and the model fit together; errors state both values, the file and a remedy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from asyncdiff.checkpoints import check_weights, object_config
from asyncdiff.checkpoints.label_meaning import check_same_labels, label_fingerprint
from asyncdiff.checkpoints.loaded_tensors import OTHER_WEIGHTS, check_trained_tensors
from asyncdiff.latents.codec import COMPARED
from asyncdiff.model import DiffusionModel
from asyncdiff.training.diffusion_module import DiffusionModule
from asyncdiff.training.lightning_internals import attached_trainer

# Arguments of networks that change neither the meaning of the weights nor the predictions.
IGNORED_ARGUMENTS = ("dropout", "checkpointing")
# Arguments of networks that change the meaning of the same weights; all others change the shapes.
SEMANTIC_ARGUMENTS = ("channels", "patch_size", "heads", "head_dim", "groups")
MAX_NAMES = 3  # maximum number of further differences listed in an error
HASH_LENGTH = 12  # number of characters of a hash shown in an error


@dataclass(frozen=True)
class Difference:
    """Value that differs between a model and a checkpoint.

    Attributes:
        name: dotted name of the value in YAML files.
        here: value in the model.
        there: value in the checkpoint.
    """

    name: str
    here: Any
    there: Any


def differences(model: DiffusionModel, config: Mapping[str, Any]) -> list[Difference]:
    """Return the differences of a model's network, process, target and image size from a checkpoint's object config.

    Arguments that only one of the two has, for example because a newer version added them, are ignored. If the classes
    of a part differ, their arguments are not compared.
    """
    there = config.get("init_args", {})
    denoiser = model.denoiser
    parts = {"network": denoiser.network, "process": denoiser.process, "target": denoiser.target}
    result: list[Difference] = []
    for name, part in parts.items():
        if there.get(name) is not None:
            result += _differences(f"model.{name}", part, there[name])
    result = [difference for difference in result if difference.name.rpartition(".")[2] not in IGNORED_ARGUMENTS]
    if "image_size" in there and there["image_size"] != model.image_size:
        result.append(Difference("model.image_size", model.image_size, there["image_size"]))
    return result


def check_differences(found: list[Difference], file: str | Path, alternative: str) -> None:
    """Raise ValueError for the first difference, if any; the error lists the rest and suggests an alternative."""
    if not found:
        return
    first, *rest = found
    names = ", ".join(difference.name for difference in rest[:MAX_NAMES])
    more = " and more" if len(rest) > MAX_NAMES else ""
    also = f" ({names}{more} also {'differ' if len(rest) > 1 else 'differs'})" if rest else ""
    raise ValueError(
        f"{first.name} must be {_yaml(first.there)} as in {file}, got {_yaml(first.here)}{also}: "
        f"set it to {_yaml(first.there)}, or {alternative}"
    )


def check_checkpoint(module: DiffusionModule, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError unless the trainer of `module` may load the checkpoint into it.

    Learning rate, level sampler, weighting, sampler, dropout and the like may differ.
    """
    trainer = attached_trainer(module)
    file = getattr(trainer, "ckpt_path", None) or "the checkpoint"
    fitting = trainer is not None and trainer.state.fn == "fit"
    if fitting and "export" in checkpoint:
        raise ValueError(
            f"ckpt_path {file} is an export, which has no optimizer state to resume: to start from its weights, set "
            "model.pretrained to it instead"
        )
    if "recipe" not in checkpoint:
        raise ValueError(
            f"ckpt_path {file} is not a checkpoint of AsyncDiffusion, it has no description of the model: choose a "
            "checkpoint written by train.py"
        )
    alternative = "start a new run without ckpt_path" if fitting else "use a checkpoint of this model"
    check_differences(differences(module.model, checkpoint["recipe"]), file, alternative)
    remedy = "resume from an earlier checkpoint" if fitting else OTHER_WEIGHTS
    if "state_dict" in checkpoint:  # fully_shard has loaded and removed it already
        check_weights(module.state_dict(keep_vars=True), checkpoint["state_dict"], file, remedy)
    check_trained_tensors(checkpoint, file, remedy, resumed=fitting)
    if trainer is not None and fitting:
        warn_of_other_precision(checkpoint, str(trainer.precision), file)
    module.labels = checkpoint.get("labels")
    if trainer is not None and trainer.state.fn != "predict":  # which needs no data
        check_label_meaning(module)
    record_latents(module, there=checkpoint.get("latents"))
    record_latents(module, here=getattr(getattr(trainer, "datamodule", None), "codec", None))


def warn_of_other_precision(checkpoint: Mapping[str, Any], here: str, file: str | Path) -> None:
    """Warn if a run that resumes does not compute in the precision of the checkpoint, if one has been recorded."""
    there = checkpoint.get("precision", here)
    if there != here:
        rank_zero_warn(
            f"{file} was trained with trainer.precision {there}, this run continues with {here}: set trainer.precision "
            f"to {there} for the numbers of an uninterrupted run"
        )


def check_data(module: DiffusionModule) -> None:
    """Raise ValueError unless the trainer's data has the classes of `module`, by number and, if known, by name.

    The shape of the images is checked with every batch.
    """
    known = getattr(getattr(attached_trainer(module), "datamodule", None), "classes", None)
    if module.classes and known is not None and known != module.classes:
        raise ValueError(
            f"network.classes must equal the number of classes in the data, {known}, got {module.classes}: "
            f"set it to {known}, or to 0 to ignore the labels"
        )
    check_label_meaning(module)


def check_label_meaning(module: DiffusionModule) -> None:
    """Record what the labels of the trainer's data mean; raise ValueError if `module` was trained on other classes."""
    trainer = attached_trainer(module)
    data = getattr(trainer, "datamodule", None)
    if not module.classes or (here := label_fingerprint(getattr(data, "label_names", None))) is None:
        return
    file = getattr(trainer, "ckpt_path", None) or "the checkpoint"
    remedy = "use the data that the model was trained on"
    if trainer is not None and trainer.state.fn == "fit":
        remedy += ", or set model.pretrained to the file, which trains its weights on new classes"
    check_same_labels(here, module.labels, file, remedy)
    module.labels = here


def record_latents(
    module: DiffusionModule, *, here: Mapping[str, Any] | None = None, there: Mapping[str, Any] | None = None
) -> None:
    """Record the fingerprint of the data's or the model's codec (`here`), and of the checkpoint's (`there`), if known.

    Raise ValueError if they differ. `module.latents` contains the fingerprints known so far.
    """
    module.latents.update({key: dict(value) for key, value in (("here", here), ("there", there)) if value})
    own, trained = module.latents.get("here", {}), module.latents.get("there", {})
    for key in COMPARED:
        if key in own and key in trained and _plain(own[key]) != _plain(trained[key]):
            file = getattr(attached_trainer(module), "ckpt_path", None) or "the checkpoint"
            raise ValueError(
                f"the codec must have the {key} {_short(trained[key])} as for {file}, got {_short(own[key])}: "
                "use the data and model.codec of that run, or start a new run without ckpt_path"
            )


def _differences(name: str, here: Any, there: Any) -> Iterator[Difference]:
    """Yield the differences of an object from an object config; where their classes differ, only those."""
    if not isinstance(there, Mapping) or "class_path" not in there:
        described = _plain(object_config.describe_or_class(here))
        if described != _plain(there):
            yield Difference(name, described, there)
    elif (path := object_config.class_path_of(here)) != there["class_path"]:
        yield Difference(name, path, there["class_path"])
    else:
        for key, value in there.get("init_args", {}).items():
            if object_config.has_argument(here, key):
                yield from _differences(f"{name}.{key}", getattr(here, key), value)


def _plain(value: Any) -> Any:
    """Convert tuples to lists, which is how files represent them."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _yaml(value: Any) -> str:
    """Format a value as in a YAML file."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> Any:
    return value[:HASH_LENGTH] if isinstance(value, str) else value
