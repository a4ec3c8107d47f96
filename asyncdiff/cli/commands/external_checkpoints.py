"""Weights of DiT and SiT from elsewhere: files in the authors' layout, and diffusers folders."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asyncdiff.checkpoints import read_safely
from asyncdiff.networks.diffusers_keys import from_diffusers, is_diffusers
from asyncdiff.networks.porting import is_authors

Which = Literal["auto", "ema", "raw"]


@dataclass(frozen=True)
class ExternalCheckpoint:
    """What a file or folder holds.

    Attributes:
        weights: by the authors' names.
        layout: of whom the names were.
        config: of a diffusers folder; empty for a file.
        scheduler: of a diffusers pipeline; empty without one.
        averaged: whether these are a run's averaged weights; None for a file that says nothing of it.
    """

    weights: dict[str, Tensor]
    layout: str
    config: dict[str, Any]
    scheduler: dict[str, Any]
    averaged: bool | None = None


def read_source(path: Path, weights: Which = "auto") -> ExternalCheckpoint:
    """The weights of a file or a folder, read without running anything in it."""
    if path.is_dir():
        return _folder(path, weights)
    if not path.is_file():
        raise FileNotFoundError(f"CHECKPOINT must be a file of weights or a diffusers folder, got {path}: no such path")
    state, averaged = _unwrapped(path, read_tensors(path), weights)
    if is_diffusers(state):
        raise ValueError(f"CHECKPOINT must be the folder of diffusers weights, got {path}: its config.json is needed")
    if not is_authors(state):
        raise ValueError(f"CHECKPOINT must hold a DiT or a SiT, got {_names(state)} in {path}: another architecture?")
    return ExternalCheckpoint(state, "the authors'", {}, {}, averaged)


def read_tensors(path: Path) -> Any:
    """The contents of a .safetensors file, or else of one that torch.save wrote."""
    if path.suffix != ".safetensors":
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments in DiT's own training checkpoints
            return read_safely(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no file of safetensors that can be read: {error}") from error


def _folder(path: Path, weights: Which) -> ExternalCheckpoint:
    """A diffusers folder: of the transformer, or of a pipeline with one."""
    if weights != "auto":
        raise ValueError(f"--weights must be left out for a folder, got {weights}: it holds one set of weights")
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    config = _json(inner / "config.json")
    _check_config(config, inner)
    files = [inner / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"CHECKPOINT must hold {files[0].name} or {files[1].name}, got {inner} without: copy it"
        )
    state, _ = _unwrapped(file, read_tensors(file), weights)
    if not is_diffusers(state):
        raise ValueError(f"CHECKPOINT must hold a DiT, got {_names(state)} in {file}: another architecture?")
    beside = path / "scheduler" / "scheduler_config.json"
    scheduler = _json(beside) if beside.is_file() else {}
    return ExternalCheckpoint(from_diffusers(state), "diffusers'", config, scheduler)


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError for what is no DiT, or one that the weights alone do not describe."""
    kind, norm = config.get("_class_name"), config.get("norm_type")
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel") or norm != "ada_norm_zero":
        raise ValueError(
            f"CHECKPOINT must hold a DiTTransformer2DModel with ada_norm_zero, got {kind} with {norm} in {folder}: "
            "another architecture?"
        )
    for name, value in (("activation_fn", "gelu-approximate"), ("norm_elementwise_affine", False)):
        if config.get(name) != value:
            raise ValueError(f"{name} must be {value} in a DiT, got {config.get(name)} in {folder}: it is no other")


def _unwrapped(path: Path, held: Any, weights: Which) -> tuple[dict[str, Tensor], bool | None]:
    """The tensors of a file, out of a wrapper of several sets if need be, and whether they are averages."""
    averaged = None
    if isinstance(held, dict) and any(isinstance(held.get(name), dict) for name in ("ema", "model")):
        chosen = {"auto": "ema" if "ema" in held else "model", "ema": "ema", "raw": "model"}[weights]
        if not isinstance(held.get(chosen), dict):
            raise ValueError(
                f"--weights must be in the file, got {weights}, but {path} has no {chosen!r}: leave it out"
            )
        held, averaged = held[chosen], chosen == "ema"
    elif weights != "auto":
        raise ValueError(f"--weights must be left out for a file with one set of weights, got {weights} for {path}")
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"CHECKPOINT must hold named tensors, got {type(held).__name__} in {path}: is it of a DiT?")
    prefixes = ("module.", "_orig_mod.")  # of distributed and compiled training
    while held and (prefix := next((p for p in prefixes if all(str(name).startswith(p) for name in held)), None)):
        held = {name.removeprefix(prefix): value for name, value in held.items()}
    return {str(name): value for name, value in held.items()}, averaged


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"CHECKPOINT must be a diffusers folder with {file.name}, got no {file}: which is it?")
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON that can be read: {error}") from error
    if not isinstance(held, dict):
        raise ValueError(f"{file} must hold a configuration, got a {type(held).__name__}: is it diffusers' own?")
    return held


def _names(state: dict[str, Tensor]) -> str:
    return ", ".join(list(state)[:2]) + " ..." if state else "nothing"
