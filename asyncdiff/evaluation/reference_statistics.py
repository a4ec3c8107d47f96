"""Save and load feature statistics of real images, with a fingerprint of the extractor and the images."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.compare import abbreviate, differences, value_at
from asyncdiff.checkpoints.json_files import parse_json
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.evaluation.features.weights import file_sha256, tensors_sha256
from asyncdiff.evaluation.frechet import Gaussian
from asyncdiff.memory import check_memory
from datamodules.index_cache import npy_header

FeatureArray = Float[Tensor, "n d"]

VERSION = 1  # version of the file format
MAX_ROWS = 50_000  # images whose features are stored in a file, spread evenly over all: 410 MB for Inception


@dataclass(frozen=True)
class Reference:
    """Feature statistics of real images, with which generated ones are compared.

    Attributes:
        gaussian: mean and covariance of the features of all images, float64.
        count: number of images, None if unknown.
        features: features of up to `MAX_ROWS` individual images, float32; None for external statistics.
        fingerprint: description that identifies the feature extractor, the images and their preprocessing.
        precision: precision of the feature extractor, float32; None in files of versions up to 0.2.0, which convolved
            in TF32 on GPUs.
    """

    gaussian: Gaussian
    count: int | None
    features: FeatureArray | None
    fingerprint: Mapping[str, Any]
    precision: str | None = None


def cache_path(fingerprint: Mapping[str, Any]) -> Path:
    """Return the path of the cache file for statistics with this fingerprint; the file may not exist."""
    text = json.dumps({"version": VERSION, "stamp": fingerprint}, sort_keys=True)
    name = str(value_at(fingerprint, "features.name")).replace("/", "-")
    return cache_folder() / "references" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def cache_folder() -> Path:
    """Return the folder for caches that can be recomputed; the data modules use it too."""
    if folder := os.environ.get("ASYNCDIFF_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asyncdiff"


def save_reference(reference: Reference, file: Path) -> None:
    """Write statistics to a safetensors file atomically; raise OSError if this fails."""
    from safetensors.torch import save as as_bytes

    tensors = {"mean": reference.gaussian.mean, "covariance": reference.gaussian.cov}
    if reference.features is not None:
        tensors["rows"] = reference.features.float()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata: dict[str, Any] = {"version": VERSION, "count": reference.count, "stamp": reference.fingerprint}
    metadata["precision"] = reference.precision
    metadata["sha256"] = _sha256(metadata, tensors)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, [as_bytes(tensors, metadata={"reference": json.dumps(metadata)})])


def load_reference(file: Path) -> Reference:
    """Read statistics from a .safetensors file written by `save_reference`, or from an .npz file with mu and sigma.

    ADM, EDM and pytorch-fid publish .npz files. Their fingerprint marks them as external: neither the images nor the
    network is known.

    Args:
        file: path of the .safetensors or .npz file.

    Returns:
        The statistics.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not contain such statistics, or they are not finite.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"reference {file} is not a file: check the path, or omit --reference to compute the statistics"
        )
    reference = _read_npz(file) if file.suffix == ".npz" else _read_safetensors(file)
    tensors = {"mean": reference.gaussian.mean, "covariance": reference.gaussian.cov, "rows": reference.features}
    check_tensors(tensors, file, "compute the statistics again")
    return reference


def check_fingerprint(reference: Reference, expected: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError with the first key that differs unless the statistics have the expected fingerprint.

    For external statistics only the number of features can be checked; see `check_image_shape`.
    """
    if "external" in reference.fingerprint:
        dim = value_at(expected, "features.dim")
        if dim != len(reference.gaussian.mean):
            raise ValueError(
                f"reference {file} has {len(reference.gaussian.mean)} features, but the feature extractor has {dim}: "
                "use the extractor that the reference was computed with"
            )
        return
    if keys := differences(expected, reference.fingerprint):
        old, new = (abbreviate(value_at(fingerprint, keys[0])) for fingerprint in (reference.fingerprint, expected))
        raise ValueError(
            f"reference {file} has another {keys[0]}, {old} instead of {new}: "
            "omit --reference to compute the statistics"
        )


def check_image_shape(reference: Reference, shape: tuple[int, int, int], file: Path) -> None:
    """Raise ValueError if the file of external statistics contains images of another (channels, height, width)."""
    own = reference.fingerprint.get("size") if "external" in reference.fingerprint else None
    if own is not None and tuple(own) != shape:
        raise ValueError(
            f"reference {file} must be of images of shape {shape}, got {tuple(own)} (channels, height, width): use "
            "statistics of images of that shape"
        )


def _sha256(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the metadata and tensors in a file."""
    text = json.dumps(metadata, sort_keys=True)
    return hashlib.sha256(f"{text} {tensors_sha256(tensors)}".encode()).hexdigest()


def _read_safetensors(file: Path) -> Reference:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as opened:
            metadata = parse_json(opened.metadata()["reference"], "its metadata", "use another file")
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        sha256 = metadata.pop("sha256", None)
        if sha256 not in (None, _sha256(metadata, tensors)):  # files from earlier releases have none
            raise ValueError("it is damaged (its SHA-256 does not match)")
        if metadata["version"] != VERSION:
            raise ValueError(f"it has version {metadata['version']}, not {VERSION}")
        gaussian = Gaussian(tensors["mean"], tensors["covariance"])
        rows, precision = tensors.get("rows"), metadata.get("precision")
        return Reference(gaussian, metadata["count"], rows, metadata["stamp"], precision)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"reference {file} cannot be read: {line}; delete it and compute it again") from error


def _read_npz(file: Path) -> Reference:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean_shape, cov_shape, images = (_shape(arrays, name) for name in ("mu", "sigma", "arr_0"))
            if not (mean_shape and cov_shape and len(mean_shape) == 1 and cov_shape == 2 * mean_shape):
                raise ValueError(f"it must contain mu (d) and sigma (d, d), got shapes {mean_shape} and {cov_shape}")
            check_memory("sigma", cov_shape, 16 * math.prod(cov_shape), "use statistics of fewer features")
            mean, cov = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    except Exception as error:  # a damaged archive can raise almost any exception
        line = str(error).split("\n")[0]
        raise ValueError(
            f"reference must contain arrays mu and sigma, got {file}: {line}; export the statistics again"
        ) from error
    fingerprint: dict[str, Any] = {"external": file.name, "sha256": file_sha256(file)}
    if images and len(images) == 4:  # ADM stores the images next to their statistics, as (n, height, width, channels)
        fingerprint["size"] = [images[3], images[1], images[2]]
    return Reference(Gaussian(mean, cov), None, None, fingerprint)


def _shape(arrays: Any, name: str) -> tuple[int, ...] | None:
    """Return the shape of an array in an open .npz file, from its header alone; None if it is missing."""
    if name not in arrays.files:
        return None
    with arrays.zip.open(f"{name}.npy") as stream:
        return npy_header(stream)[0]
