"""Reading an export: three plain files, checked against each other, none of which can hold code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from asyncdiff.checkpoints.export.yaml_tuples import restored
from asyncdiff.checkpoints.old_names import current

FORMAT = 1  # of exports; a reader refuses others
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
AVERAGED, LAST = "ema", "raw"  # what the weights of an export may be
REMEDY = "fetch or export it again"


def is_export(path: str | Path) -> bool:
    """Whether a path is a folder that `python -m asyncdiff export` wrote, as far as its names tell."""
    return (Path(path) / WEIGHTS).is_file()


def weight_file(path: str | Path) -> Path:
    """The file with the weights: that of an export, or the checkpoint itself."""
    return Path(path) / WEIGHTS if is_export(path) else Path(path)


def read_export(folder: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """What an export holds, as a checkpoint of one set of weights: recipe, state_dict, global_step and the like.

    Its entry "export" is the folder's config, by which it is told from a checkpoint that a run could continue from.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is another one, damaged, of another version, or does not belong to the others.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"an export must hold {WEIGHTS} and {CONFIG}, got {folder} without {name}: {REMEDY}"
            )
    told, tensors = _tensors(folder / WEIGHTS, map_location)
    content = (folder / CONFIG).read_bytes()
    version = told.get("asyncdiff_format")
    if version != str(FORMAT):
        raise ValueError(
            f"an export must be of format {FORMAT}, got {version or 'none'} in {folder / WEIGHTS}: "
            "read it by the version of asyncdiff that wrote it"
        )
    if (found := hashlib.sha256(content).hexdigest()) != told.get("config_sha256"):
        raise ValueError(
            f"{CONFIG} must have the SHA-256 that {WEIGHTS} tells, {str(told.get('config_sha256'))[:12]}, got "
            f"{found[:12]} in {folder}: {REMEDY}; what it says is changed in Python, or by options of commands"
        )
    config = _config(folder / CONFIG, content)
    if (found := tensors_sha256(tensors)) != config["weights_sha256"]:
        raise ValueError(
            f"{WEIGHTS} must hold tensors of the SHA-256 {str(config['weights_sha256'])[:12]}, got {found[:12]} in "
            f"{folder}: it is damaged, {REMEDY}"
        )
    return {
        "recipe": current(restored(config["recipe"], set(map(str, config["tuples"])))),
        "state_dict": tensors,
        "global_step": config["step"],
        "epoch": 0,
        "pytorch-lightning_version": config["software"]["lightning"],
        "export": current(config) | {"folder": str(folder)},
    }


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 over names, types, shapes and bytes of tensors, whatever their order; hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(file: Path, map_location: torch.device | str) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt", device=str(map_location)) as held:
            told = held.metadata() or {}
            return dict(told), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, ValueError, OSError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} must be a file of safetensors, got something else: {line}; {REMEDY}") from error


def _config(file: Path, content: bytes) -> dict[str, Any]:
    """The configuration, whose keys are those that are read, of the kinds that they have to be."""
    try:
        config = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{file} must be YAML, got something else: {line}; {REMEDY}") from error
    kinds = {"recipe": dict, "tuples": list, "weights": str, "weights_sha256": str, "step": int, "software": dict}
    for key, kind in kinds.items():
        value = config.get(key) if isinstance(config, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"{file} must have a {kind.__name__} at {key}, got {type(value).__name__}: {REMEDY}")
    if config["weights"] not in (AVERAGED, LAST) or "lightning" not in config["software"]:
        raise ValueError(
            f"{file} must have {AVERAGED} or {LAST} at weights and a version at software.lightning, got "
            f"{config['weights']} and {config['software'].get('lightning')}: {REMEDY}"
        )
    return dict(config)
