"""Read DiT and SiT weights from other projects: the original authors' files, and diffusers folders."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asyncdiff.checkpoints import read_safely
from asyncdiff.checkpoints.json_files import read_json
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.networks.diffusers_keys import from_diffusers, has_diffusers_names
from asyncdiff.networks.porting import has_original_names

WeightSet = Literal["auto", "ema", "raw"]


@dataclass(frozen=True)
class ExternalCheckpoint:
    """Weights and configuration read from a file or a diffusers folder.

    Attributes:
        weights: tensors, by the original authors' parameter names.
        layout: parameter naming in the file, "original" or "diffusers".
        config: model configuration of a diffusers folder; empty for a file.
        scheduler: scheduler configuration of a diffusers pipeline; empty without one.
        averaged: whether these are EMA weights; None if unknown.
        classes: number of classes, without "no label", if the file or folder records it.
    """

    weights: dict[str, Tensor]
    layout: str
    config: dict[str, Any]
    scheduler: dict[str, Any]
    averaged: bool | None = None
    classes: int | None = None


def read_source(path: Path, weights: WeightSet = "auto") -> ExternalCheckpoint:
    """Read weights from a file or folder without running any code in it."""
    if path.is_dir():
        return _folder(path, weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"CHECKPOINT must be a file of weights or a diffusers folder, got {path}, which does not exist: "
            "check the path"
        )
    contents = read_tensors(path)
    state, averaged = _unwrap(path, contents, weights)
    if has_diffusers_names(state):
        raise ValueError(
            f"{path} contains diffusers weights, which need their config.json: pass the folder instead of the file"
        )
    if not has_original_names(state):
        raise ValueError(
            f"CHECKPOINT must contain a DiT or a SiT, got {_names(state)} in {path}: "
            "other architectures are not supported"
        )
    classes = getattr(contents.get("args"), "num_classes", None)  # of DiT's training script
    return ExternalCheckpoint(state, "original", {}, {}, averaged, classes)


def read_tensors(path: Path) -> Any:
    """Load a .safetensors file, or a file written by torch.save."""
    if path.suffix != ".safetensors":
        # In checkpoints of DiT's training script; it holds values and does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):  # noqa: TID251
            return read_safely(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error


def _folder(path: Path, weights: WeightSet) -> ExternalCheckpoint:
    """Read the diffusers folder of a transformer or of a pipeline that contains one."""
    if weights != "auto":
        raise ValueError(
            f"--weights is {weights}, but a diffusers folder contains a single set of weights: drop --weights"
        )
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    config = _json(inner / "config.json")
    _check_config(config, inner)
    files = [inner / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{inner} contains neither {files[0].name} nor {files[1].name}: download one of them into it"
        )
    state, _ = _unwrap(file, read_tensors(file), weights)
    if not has_diffusers_names(state):
        raise ValueError(
            f"CHECKPOINT must contain a DiT, got {_names(state)} in {file}: other architectures are not supported"
        )
    scheduler_file = path / "scheduler" / "scheduler_config.json"
    scheduler = _json(scheduler_file) if scheduler_file.is_file() else {}
    classes = config.get("num_embeds_ada_norm")
    return ExternalCheckpoint(from_diffusers(state), "diffusers", config, scheduler, classes=classes)


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError unless the configuration describes a standard DiT, which the weights determine entirely."""
    kind, norm = config.get("_class_name"), config.get("norm_type")
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel") or norm != "ada_norm_zero":
        raise ValueError(
            f"CHECKPOINT must contain a DiTTransformer2DModel with ada_norm_zero, got {kind} with {norm} in {folder}: "
            "other architectures are not supported"
        )
    for name, value in (("activation_fn", "gelu-approximate"), ("norm_elementwise_affine", False)):
        if config.get(name) != value:
            raise ValueError(
                f"{name} must be {value} in a DiT, got {config.get(name)} in {folder}: other variants are not supported"
            )


def _unwrap(path: Path, contents: Any, weights: WeightSet) -> tuple[dict[str, Tensor], bool | None]:
    """Select one set of weights from a file; return its tensors and whether they are EMA weights (None if unknown)."""
    averaged = None
    if isinstance(contents, dict) and any(isinstance(contents.get(name), dict) for name in ("ema", "model")):
        key = {"auto": "ema" if "ema" in contents else "model", "ema": "ema", "raw": "model"}[weights]
        if not isinstance(contents.get(key), dict):
            found = "no such entry" if key not in contents else f"type {type(contents[key]).__name__} there"
            raise ValueError(
                f"--weights {weights} reads the tensors at {key!r}, but {path} has {found}: try another --weights"
            )
        contents, averaged = contents[key], key == "ema"
    elif weights != "auto":
        raise ValueError(f"--weights is {weights}, but {path} contains a single set of weights: drop --weights")
    if not isinstance(contents, dict):
        raise ValueError(f"{path} must contain named tensors, got type {type(contents).__name__}: choose another file")
    for name, value in contents.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path} must contain only named tensors, but {name!r} has type {type(value).__name__}: choose another"
            )
    prefixes = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile
    while contents and (prefix := next((p for p in prefixes if all(str(n).startswith(p) for n in contents)), None)):
        contents = {name.removeprefix(prefix): value for name, value in contents.items()}
    remedy = "try another --weights, or another file" if averaged is not None else "download the file again"
    check_tensors(contents, path, remedy)
    return {str(name): value for name, value in contents.items()}, averaged


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"CHECKPOINT must be a file of weights or a diffusers folder, but {file} is missing")
    return read_json(file, "download it again")


def _names(state: dict[str, Tensor]) -> str:
    """Describe a state dict in a message by its first names."""
    return f"tensors named {', '.join(list(state)[:2])} ..." if state else "no tensors"
