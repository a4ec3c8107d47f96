"""Read an export: three plain files, checked against each other, none of which can hold code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from asyncdiff.checkpoints.export.yaml_tuples import restore_tuples
from asyncdiff.checkpoints.old_names import update_names

FORMAT = 1  # version of the format; others are refused
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
AVERAGED, LAST = "ema", "raw"  # kinds of weights in an export
REMEDY = "download or export it again"


def is_export(path: str | Path) -> bool:
    """Return whether a path is a folder of `python -m asyncdiff export`, judged by its file names."""
    return (Path(path) / WEIGHTS).is_file()


def weight_file(path: str | Path) -> Path:
    """Return the file with the weights: that of an export, or the checkpoint itself."""
    return Path(path) / WEIGHTS if is_export(path) else Path(path)


def read_export(folder: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read an export as a checkpoint with one set of weights.

    Args:
        folder: folder of the export.
        map_location: device of the tensors.

    Returns:
        A dictionary with recipe, state_dict, global_step and the like. Its entry "export", the contents of config.yaml,
        distinguishes it from a checkpoint that a run can resume from.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another format or version, or does not match the others.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"an export must hold {WEIGHTS} and {CONFIG}, got {folder} without {name}: {REMEDY}"
            )
    metadata, tensors = _read_tensors(folder / WEIGHTS, map_location)
    content = (folder / CONFIG).read_bytes()
    version = metadata.get("asyncdiff_format")
    if version != str(FORMAT):
        raise ValueError(
            f"an export must be of format {FORMAT}, got {version or 'none'} in {folder / WEIGHTS}: "
            "read it with the version of asyncdiff that wrote it"
        )
    if (found := hashlib.sha256(content).hexdigest()) != metadata.get("config_sha256"):
        raise ValueError(
            f"{CONFIG} must have the SHA-256 recorded in {WEIGHTS}, {str(metadata.get('config_sha256'))[:12]}, got "
            f"{found[:12]} in {folder}: {REMEDY}; override its settings in Python or by options of commands instead"
        )
    config = _read_config(folder / CONFIG, content)
    if (found := tensors_sha256(tensors)) != config["weights_sha256"]:
        raise ValueError(
            f"{WEIGHTS} must hold tensors with the SHA-256 {str(config['weights_sha256'])[:12]}, got {found[:12]} in "
            f"{folder}: it is damaged, {REMEDY}"
        )
    return {
        "recipe": update_names(restore_tuples(config["recipe"], set(map(str, config["tuples"])))),
        "state_dict": tensors,
        "global_step": config["step"],
        "epoch": 0,
        "pytorch-lightning_version": config["software"]["lightning"],
        "export": update_names(config) | {"folder": str(folder)},
    }


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 over names, types, shapes and bytes of tensors, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_tensors(file: Path, map_location: torch.device | str) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt", device=str(map_location)) as opened:
            metadata = opened.metadata() or {}
            return dict(metadata), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, ValueError, OSError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} must be a safetensors file, got something else: {line}; {REMEDY}") from error


def _read_config(file: Path, content: bytes) -> dict[str, Any]:
    """Read the configuration; ValueError unless it has the required keys with values of the right types."""
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
