"""Export a trained model as a folder: read its checkpoint once, and write weights, configuration and model card."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.checkpoints import choose_weights, object_config, read_checkpoint
from asyncdiff.checkpoints.build_limits import limited_to
from asyncdiff.checkpoints.export.hub import upload_export
from asyncdiff.checkpoints.export.model_card import model_card, without_local_paths
from asyncdiff.checkpoints.export.save import write_export
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.runs import run_directory_of
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.result_card import commit, read_card
from asyncdiff.foreign_text import MAX_NOTE, visible
from asyncdiff.model import DiffusionModel
from datamodules.hidden_names import is_hidden

MODEL_PARTS = ("network", "process", "target", "levels", "weighting", "sampler", "codec")


def export(file: Path, options: Any) -> None:
    """Write the export of a checkpoint as the options of the command ask for, and print a summary."""
    checkpoint = read_checkpoint(file)
    config, tensors, part_calls = export_contents(checkpoint, file, options)
    default = choose_weights(checkpoint, "auto", file)[1]
    cards = read_matching_cards(run_directory_of(file) / "evaluation", config, default)
    card = model_card(options.name or options.output.name, config, part_calls, cards)
    write_export(options.output, tensors, config, card, overwrite=options.overwrite)
    weight_set = "EMA weights" if config["weights"] == "ema" else "raw weights"
    print(f"{weight_set} from step {config['step']}: {config['parameters']:,} parameters; result cards: {len(cards)}")
    print(f"export: {options.output}")
    if options.push_to_hub is not None:
        print(f"published: {upload_export(options.output, options.push_to_hub, private=options.private)}")


def export_contents(
    checkpoint: Mapping[str, Any], file: Path, options: Any
) -> tuple[dict[str, Any], Mapping[str, Any], dict[str, str]]:
    """Return an export's configuration and weights, and the model's parts as constructor calls for its model card."""
    # Building the model ensures that the export can be loaded, too.
    allow = trusted_packages.of_models()
    model = DiffusionModel.from_checkpoint(checkpoint, file, weights=options.weights, allow=allow)
    tensors, weight_set = choose_weights(checkpoint, options.weights, file)
    config = {
        "recipe": checkpoint["recipe"],
        "weights": weight_set,
        "step": checkpoint.get("global_step", 0),
        "precision": checkpoint.get("precision"),  # of the run, in which the model draws on devices that have it
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "classes": model.classes,
        "label_names": _label_names(options.label_names, model.classes),
        "labels": checkpoint.get("labels"),
        "normalisation": _normalization(model, checkpoint),
        "data": _data(run_directory_of(file) / "config.yaml"),
        "checkpoint_sha256": file_sha256(file),
        # The version that wrote the checkpoint, because Lightning needs it to migrate the file.
        "software": {
            "commit": commit(),
            "torch": version("torch"),
            "lightning": str(checkpoint.get("pytorch-lightning_version") or version("lightning")),
        },
    }
    with limited_to(tensors, file):
        training = _training_parts(checkpoint["recipe"])
    return config, tensors, _part_calls(model, training)


def _training_parts(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Build the parts of a recipe that training needs and drawing does not."""
    parts = {name: value for name, value in recipe["init_args"].items() if name in ("levels", "weighting")}
    return dict(object_config.build(parts, trusted_packages.of_models()))


def _part_calls(model: DiffusionModel, training: Mapping[str, Any]) -> dict[str, str]:
    """Return the constructor calls of the parts of a model and of its training, by the name of the part."""
    parts: dict[str, Any] = {"process": model.denoiser.process, "target": model.denoiser.target, **training}
    parts |= {"network": model.network, "sampler": model.sampler, "codec": model.codec}
    return {name: object_config.format_call(parts[name]) for name in MODEL_PARTS if parts.get(name) is not None}


def read_matching_cards(folder: Path, config: Mapping[str, Any], default: str) -> dict[str, dict[str, Any]]:
    """Read the result cards that were measured on these weights, and print a line about every other card.

    Args:
        folder: folder with the run's result cards; it may be missing.
        config: configuration of the export.
        default: "ema" or "raw", assumed for cards without this entry: training evaluates the EMA weights if there are
            any.

    Returns:
        Metrics and protocol of every matching card, by file name.
    """
    cards = {}
    for path in sorted(path for path in folder.glob("*.json") if not is_hidden(path.name)):
        try:
            card = read_card(path)
        except ValueError as error:
            print(visible(f"skipped: {error}", MAX_NOTE))
            continue
        protocol = card["protocol"]
        expected = {key: config[key] for key in ("checkpoint_sha256", "step", "weights")}
        different = [
            key for key, value in expected.items() if {"weights": default, **protocol}.get(key, value) != value
        ]
        if different:
            reason = f"it was measured on other weights (different {', '.join(different)})"
            print(visible(f"skipped {path}: {reason}", MAX_NOTE))
            continue
        if not {"checkpoint_sha256", "step"} & protocol.keys():
            print(visible(f"skipped {path}: it does not record the checkpoint that it was measured on", MAX_NOTE))
            continue
        cards[path.name] = {"metrics": card["metrics"], "protocol": without_local_paths(protocol)}
    return cards


def _normalization(model: DiffusionModel, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the model's input space: pixels in [-1, 1], or latents of a codec."""
    channels, size, _ = model.shape
    latents = checkpoint.get("latents")
    pixels = model.codec is None and latents is None and channels in (1, 3)
    space = {"space": "pixels", "range": [-1, 1]} if pixels else {"space": "latents", "codec": latents}
    return {**space, "channels": channels, "size": size}


def _data(file: Path) -> dict[str, Any] | None:
    """Return the data section of a run's configuration without local paths; None if it has no data section."""
    if not file.exists():
        return None
    try:
        section = OmegaConf.select(Experiment(file).config, "data")
        data = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_dict(section) else None
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: an interpolation in the section data cannot be resolved: {error}") from error
    return without_local_paths(data) if isinstance(data, dict) and "class_path" in data else None


def _label_names(file: Path | None, classes: int) -> list[str] | None:
    if file is None:
        return None
    if not file.is_file():
        problem = "is a folder" if file.exists() else "does not exist"
        raise FileNotFoundError(f"--label_names must be a text file, got {file}, which {problem}: check the path")
    try:
        names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--label_names must be a text file, got {file}: {error}") from error
    if len(names) != classes:
        raise ValueError(
            f"--label_names must have one line per class, got {len(names)} in {file} for {classes} classes"
        )
    return names
