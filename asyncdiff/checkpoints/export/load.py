"""Read exports: three plain files that cannot contain code and are checked against each other."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncdiff.checkpoints.export.files import CONFIG, WEIGHTS
from asyncdiff.checkpoints.export.yaml_tuples import restore_tuples
from asyncdiff.checkpoints.object_config import is_object_config
from asyncdiff.checkpoints.old_names import update_names
from asyncdiff.yaml_files import parse_yaml

FORMAT = 1  # version of the export format; exports of other versions are refused
EMA, RAW = "ema", "raw"  # kinds of weights in an export
REMEDY = "download or export it again"


def read_export(folder: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read an export into a checkpoint dictionary with one set of weights.

    Args:
        folder: folder of the export.
        map_location: device to load the tensors to.

    Returns:
        A dictionary with recipe, state_dict, global_step and so on. Its entry "export" holds the contents of
        config.yaml; checkpoints that a run can resume from have no such entry.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, has another format version, or does not match the others.
    """
    weights, config_file = Path(folder) / WEIGHTS, Path(folder) / CONFIG
    for file in (weights, config_file):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is not a complete export, {file.name} is missing: {REMEDY}")
    metadata, tensors = _read_tensors(weights, map_location)
    content = config_file.read_bytes()
    if (version := metadata.get("asyncdiff_format")) != str(FORMAT):
        raise ValueError(
            f"the export format version must be {FORMAT}, got {version or 'none'} in {weights}: "
            "read it with the version of asyncdiff that wrote it"
        )
    if (actual := hashlib.sha256(content).hexdigest()) != metadata.get("config_sha256"):
        raise ValueError(
            f"{config_file} was changed after the export, its SHA-256 is {actual[:12]}, but {WEIGHTS} records "
            f"{str(metadata.get('config_sha256'))[:12]}: {REMEDY}; to change settings, use Python or command options"
        )
    config = _read_config(config_file, content)
    if (actual := tensors_sha256(tensors)) != config["weights_sha256"]:
        raise ValueError(
            f"{weights} is damaged, the SHA-256 of its tensors is {actual[:12]}, but {CONFIG} records "
            f"{config['weights_sha256'][:12]}: {REMEDY}"
        )
    return {
        "recipe": update_names(restore_tuples(config["recipe"], set(map(str, config["tuples"])))),
        "state_dict": tensors,
        "global_step": config["step"],
        "epoch": 0,
        "pytorch-lightning_version": config["software"]["lightning"],
        **({"labels": config["labels"]} if isinstance(config.get("labels"), dict) else {}),
        **({"precision": config["precision"]} if isinstance(config.get("precision"), str) else {}),
        "export": update_names(config) | {"folder": str(folder)},
    }


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of the names, dtypes, shapes and bytes of tensors; their order does not matter."""
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
        raise ValueError(f"{file} is not a valid safetensors file, {line}: {REMEDY}") from error


def _read_config(file: Path, content: bytes) -> dict[str, Any]:
    """Read the configuration; raise ValueError if a required key is missing or its value has the wrong type."""
    try:
        config = parse_yaml(content, str(file), dumped=True)
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from error
    kinds = {"recipe": dict, "tuples": list, "weights": str, "weights_sha256": str, "step": int, "software": dict}
    for key, kind in kinds.items():
        value = config.get(key) if isinstance(config, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"{key} in {file} must be a {kind.__name__}, got {type(value).__name__}: {REMEDY}")
    if config["weights"] not in (EMA, RAW) or "lightning" not in config["software"]:
        raise ValueError(
            f"weights in {file} must be {EMA} or {RAW} and software.lightning a version, got "
            f"{config['weights']} and {config['software'].get('lightning')}: {REMEDY}"
        )
    if not is_object_config(config["recipe"]):
        keys = list(config["recipe"])
        raise ValueError(f"recipe in {file} must have the keys class_path and init_args, got {keys}: {REMEDY}")
    return dict(config)
