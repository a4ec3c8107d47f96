"""`python -m asyncdiff export RUN --output DIR`: a trained model as a folder to share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asyncdiff.checkpoints import choose, object_config, read_checkpoint
from asyncdiff.checkpoints.export import is_export
from asyncdiff.checkpoints.export.hub import check_repository, published
from asyncdiff.checkpoints.export.model_card import model_card, without_places
from asyncdiff.checkpoints.export.save import check_place, write_export
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.draw import checkpoint_of, run_of
from asyncdiff.cli.commands.experiment_file import Experiment
from asyncdiff.cli.commands.options import command_parser
from asyncdiff.evaluation.features.weights import file_sha256
from asyncdiff.evaluation.result_card import commit, read_card

DESCRIPTION = (
    "Write weights in safetensors, a configuration in YAML and a model card, for AsyncDiffusion.from_pretrained."
)
DESCRIBED = ("network", "process", "target", "levels", "weighting", "sampler", "codec")


def main(args: Sequence[str]) -> None:
    """Read the words and the checkpoint, write the folder, and tell what is in it."""
    parser = command_parser("export", DESCRIPTION)
    parser.add_argument("run", type=Path, help="a run directory of train.py, or a .ckpt file")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write, a new one")
    parser.add_argument("--overwrite", action="store_true", help="put it in the place of an earlier export")
    parser.add_argument("--ckpt_path", type=Path | None, help="RUN/checkpoints/last.ckpt by default, also called last")
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WHICH)
    parser.add_argument("--name", type=str | None, help="of the model, in its card; the folder's by default")
    parser.add_argument("--label_names", type=Path | None, help="text file with the name of a class in each line")
    parser.add_argument("--push_to_hub", type=str | None, help="upload it, too, to OWNER/NAME of the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="of a repository that is made: only for its owner")
    options = parser.parse_args(list(args))
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    if is_export(options.run):
        raise ValueError(f"RUN must be a run directory or a .ckpt file, got {options.run}, an export: copy the folder")
    check_place(options.output, overwrite=options.overwrite)
    last = options.ckpt_path == Path("last") and not Path("last").exists()
    file = checkpoint_of(options.run, None if last and not options.run.is_file() else options.ckpt_path)
    config, tensors, described = contents(file, options)
    usual = choose(read_checkpoint(file), "auto", file)[1]
    cards = measured(run_of(file) / "evaluation", config, usual)
    write_export(
        options.output, tensors, config, model_card(options.name or options.output.name, config, described, cards)
    )
    which = "averaged weights" if config["weights"] == "ema" else "weights of the last step"
    print(f"{which} of step {config['step']}: {config['parameters']:,} parameters; cards of evaluate: {len(cards)}")
    print(f"export: {options.output}")
    if options.push_to_hub is not None:
        print(f"published: {published(options.output, options.push_to_hub, private=options.private)}")


def contents(file: Path, options: Any) -> tuple[dict[str, Any], Mapping[str, Any], dict[str, str]]:
    """The configuration and the weights of an export, and the parts of its model as calls, for people."""
    from asyncdiff.training.module import AsyncDiffusion  # late: it loads Lightning

    allow = ["asyncdiff", *trusted_packages.extra()]
    # Built once: an export that cannot be loaded is no use.
    model: Any = AsyncDiffusion.load_from_checkpoint(file, weights=options.weights, allow=allow)
    checkpoint = read_checkpoint(file)
    tensors, held = choose(checkpoint, options.weights, file)
    config = {
        "recipe": checkpoint["recipe"],
        "weights": held,
        "step": checkpoint.get("global_step", 0),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "classes": model.classes,
        "label_names": _label_names(options.label_names, model.classes),
        "normalisation": _normalisation(model, checkpoint),
        "data": _data(run_of(file) / "config.yaml"),
        "checkpoint_sha256": file_sha256(file),
        "software": {"commit": commit(), "torch": _version("torch"), "lightning": _lightning(checkpoint)},
    }
    kept = {name: getattr(model, name) for name in DESCRIBED}
    described = {name: object_config.spell(value) for name, value in kept.items() if value is not None}
    return config, tensors, described


def measured(folder: Path, config: Mapping[str, Any], usual: str) -> dict[str, dict[str, Any]]:
    """The cards in a folder that are of these weights, by the names of their files; others are told and left out.

    Args:
        folder: of a run's evaluations; there may be none.
        config: of the export.
        usual: which weights cards are of that do not tell: training judges the averages where it has any.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            card = read_card(path)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        protocol = card["protocol"]
        of = {"checkpoint_sha256": config["checkpoint_sha256"], "step": config["step"], "weights": config["weights"]}
        other = [key for key, value in of.items() if {"weights": usual, **protocol}.get(key, value) != value]
        if other or not {"checkpoint_sha256", "step"} & protocol.keys():
            print(f"left out: {path} is of another {other[0] if other else 'or no known checkpoint'}")
            continue
        found[path.name] = {"metrics": card["metrics"], "protocol": without_places(protocol)}
    return found


def _normalisation(model: Any, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers that the model draws stand for."""
    channels, size, _ = model.shape
    latents = checkpoint.get("latents")
    pixels = model.codec is None and latents is None and channels in (1, 3)
    told = {"space": "pixels", "range": [-1, 1]} if pixels else {"space": "latents", "codec": latents}
    return {**told, "channels": channels, "size": size}


def _data(file: Path) -> dict[str, Any] | None:
    """The data section of a run's configuration, without this machine's paths; None where there is none."""
    if not file.is_file():
        return None
    try:
        section = OmegaConf.select(Experiment(file).config, "data")
        held = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_dict(section) else None
    except OmegaConfBaseException as error:
        raise ValueError(f"{file} must have a data section whose interpolations lead to values, got {error}") from error
    return without_places(held) if isinstance(held, dict) and "class_path" in held else None


def _label_names(file: Path | None, classes: int) -> list[str] | None:
    if file is None:
        return None
    if not file.is_file():
        raise FileNotFoundError(f"--label_names must be a text file, got {file}: there is none")
    try:
        names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--label_names must be a text file, got {file}: {error}") from error
    if len(names) != classes:
        raise ValueError(f"--label_names must have a line for each of {classes} classes, got {len(names)} in {file}")
    return names


def _lightning(checkpoint: Mapping[str, Any]) -> str:
    """Of the checkpoint's writer: Lightning reads it by that."""
    return str(checkpoint.get("pytorch-lightning_version") or _version("lightning"))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


WHICH = "averaged ones where the run kept any by default; ema insists on them, raw takes those of the last step"
