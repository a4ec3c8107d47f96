"""Read DiT and SiT weights of other projects: files in the authors' layout, and diffusers folders."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asyncdiff.checkpoints import read_safely
from asyncdiff.networks.diffusers_keys import from_diffusers, has_diffusers_names
from asyncdiff.networks.porting import has_original_names

Which = Literal["auto", "ema", "raw"]


@dataclass(frozen=True)
class ExternalCheckpoint:
    """Contents of a file or folder of weights.

    Attributes:
        weights: weights by the authors' names.
        layout: whose names the file used.
        config: model configuration of a diffusers folder; empty for a file.
        scheduler: scheduler configuration of a diffusers pipeline; empty without one.
        averaged: whether these are EMA weights; None if the file does not say.
    """

    weights: dict[str, Tensor]
    layout: str
    config: dict[str, Any]
    scheduler: dict[str, Any]
    averaged: bool | None = None


def read_source(path: Path, weights: Which = "auto") -> ExternalCheckpoint:
    """Read the weights of a file or folder without running any code in it."""
    if path.is_dir():
        return _folder(path, weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"CHECKPOINT must be a file of weights or a diffusers folder, got {path}, which does not exist"
        )
    state, averaged = _unwrap(path, read_tensors(path), weights)
    if has_diffusers_names(state):
        raise ValueError(
            f"CHECKPOINT must be the folder of diffusers weights, got the file {path}: its config.json is needed"
        )
    if not has_original_names(state):
        raise ValueError(
            f"CHECKPOINT must contain a DiT or a SiT, got {_names(state)} in {path}: this architecture is not supported"
        )
    return ExternalCheckpoint(state, "the authors'", {}, {}, averaged)


def read_tensors(path: Path) -> Any:
    """Return the contents of a .safetensors file, or of a file written by torch.save."""
    if path.suffix != ".safetensors":
        with torch.serialization.safe_globals([argparse.Namespace]):  # in checkpoints of DiT's training script
            return read_safely(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} must be a readable safetensors file: {error}") from error


def _folder(path: Path, weights: Which) -> ExternalCheckpoint:
    """Read a diffusers folder, of a transformer or of a pipeline with one."""
    if weights != "auto":
        raise ValueError(f"--weights must be left out for a folder, got {weights}: it contains one set of weights")
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    config = _json(inner / "config.json")
    _check_config(config, inner)
    files = [inner / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"CHECKPOINT must contain {files[0].name} or {files[1].name}, got {inner} without them: copy one there"
        )
    state, _ = _unwrap(file, read_tensors(file), weights)
    if not has_diffusers_names(state):
        raise ValueError(
            f"CHECKPOINT must contain a DiT, got {_names(state)} in {file}: other architectures are not supported"
        )
    scheduler_file = path / "scheduler" / "scheduler_config.json"
    scheduler = _json(scheduler_file) if scheduler_file.is_file() else {}
    return ExternalCheckpoint(from_diffusers(state), "diffusers'", config, scheduler)


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError unless the configuration is of a standard DiT, which the weights alone describe."""
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


def _unwrap(path: Path, contents: Any, weights: Which) -> tuple[dict[str, Tensor], bool | None]:
    """Return the tensors of a file, which may contain several sets, and whether they are EMA weights."""
    averaged = None
    if isinstance(contents, dict) and any(isinstance(contents.get(name), dict) for name in ("ema", "model")):
        key = {"auto": "ema" if "ema" in contents else "model", "ema": "ema", "raw": "model"}[weights]
        if not isinstance(contents.get(key), dict):
            raise ValueError(f"--weights must be in the file, got {weights}, but {path} has no {key!r}: leave it out")
        contents, averaged = contents[key], key == "ema"
    elif weights != "auto":
        raise ValueError(f"--weights must be left out for a file with one set of weights, got {weights} for {path}")
    if not isinstance(contents, dict) or not all(isinstance(value, Tensor) for value in contents.values()):
        raise ValueError(
            f"CHECKPOINT must contain named tensors, got {type(contents).__name__} in {path}: choose another"
        )
    prefixes = ("module.", "_orig_mod.")  # added by distributed and compiled training
    while contents and (prefix := next((p for p in prefixes if all(str(n).startswith(p) for n in contents)), None)):
        contents = {name.removeprefix(prefix): value for name, value in contents.items()}
    return {str(name): value for name, value in contents.items()}, averaged


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"CHECKPOINT must be a diffusers folder with {file.name}, got one without {file}: name another"
        )
    try:
        contents = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} must be a readable JSON file: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{file} must contain a diffusers configuration, got a {type(contents).__name__}: restore it")
    return contents


def _names(state: dict[str, Tensor]) -> str:
    return ", ".join(list(state)[:2]) + " ..." if state else "nothing"
