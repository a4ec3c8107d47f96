"""Statistics of real images, computed once and kept with what they are of."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checkpoints.atomic_files import replace
from asyncdiff.evaluation.features.weights import file_sha256, tensors_sha256
from asyncdiff.evaluation.frechet import Gaussian
from asyncdiff.evaluation.result_card import differences, told, value_at

Rows = Float[Tensor, "n d"]

VERSION = 1  # of the files
KEPT = 50_000  # rows of features that a file holds, spread evenly over the images: 410 MB of Inception's


@dataclass(frozen=True)
class Reference:
    """The real side of a comparison.

    Attributes:
        gaussian: mean and covariance of all images' features, float64.
        count: number of these images, None where nobody told.
        rows: the features of up to `KEPT` of them, float32; None for statistics from elsewhere.
        stamp: what they are of: features, images, and how these were prepared.
    """

    gaussian: Gaussian
    count: int | None
    rows: Rows | None
    stamp: Mapping[str, Any]


def place(stamp: Mapping[str, Any]) -> Path:
    """The file in the cache for statistics with this stamp, which need not be there."""
    text = json.dumps({"version": VERSION, "stamp": stamp}, sort_keys=True)
    name = str(value_at(stamp, "features.name")).replace("/", "-")
    return cache_folder() / "references" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def cache_folder() -> Path:
    """Return the folder of everything that can be computed again, the same as the data modules'."""
    if chosen := os.environ.get("ASYNCDIFF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asyncdiff"


def save(reference: Reference, file: Path) -> None:
    """Write a safetensors file as a whole: a reader finds the old one or the new one. OSError where it cannot be."""
    from safetensors.torch import save as as_bytes

    tensors = {"mean": reference.gaussian.mean, "covariance": reference.gaussian.cov}
    if reference.rows is not None:
        tensors["rows"] = reference.rows.float()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    told_with: dict[str, Any] = {"version": VERSION, "count": reference.count, "stamp": reference.stamp}
    told_with["sha256"] = _sha256(told_with, tensors)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, [as_bytes(tensors, metadata={"reference": json.dumps(told_with)})])


def load(file: Path) -> Reference:
    """The statistics of a file: ours, .safetensors, or .npz with mu and sigma as ADM, EDM and pytorch-fid publish them.

    The stamp of the latter says that they are external: nothing tells of which images they are, or by which network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another one.
    """
    if not file.is_file():
        raise FileNotFoundError(f"reference must be an existing file, got {file}: leave it out to compute one")
    return _external(file) if file.suffix == ".npz" else _own(file)


def check(reference: Reference, expected: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError unless the statistics of `file` are of what is expected, naming the first key that differs.

    Of external ones only the number of features can be checked.
    """
    if "external" in reference.stamp:
        wanted = value_at(expected, "features.dim")
        if wanted != len(reference.gaussian.mean):
            raise ValueError(
                f"reference must be of {wanted} features, got {len(reference.gaussian.mean)} in {file}: "
                "choose the features that it was made with"
            )
        return
    if keys := differences(expected, reference.stamp):
        old, new = (told(value_at(stamp, keys[0])) for stamp in (reference.stamp, expected))
        raise ValueError(
            f"reference must have the same {keys[0]}, got {old} in {file} where {new} is asked for: "
            "leave --reference out to compute one"
        )


def _sha256(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Over all that a file tells and holds."""
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(f"{text} {tensors_sha256(tensors)}".encode()).hexdigest()


def _own(file: Path) -> Reference:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as held:
            about = json.loads(held.metadata()["reference"])
            tensors: dict[str, Tensor] = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        sha256 = about.pop("sha256", None)
        if sha256 not in (None, _sha256(about, tensors)):  # none in files of earlier releases
            raise ValueError("it is damaged, its SHA-256 is not what was written")
        if about["version"] != VERSION:
            raise ValueError(f"it is of version {about['version']}, not {VERSION}")
        gaussian = Gaussian(tensors["mean"], tensors["covariance"])
        return Reference(gaussian, about["count"], tensors.get("rows"), about["stamp"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"reference must be a file of statistics, got {file}: {line}; remove it") from error


def _external(file: Path) -> Reference:
    try:
        with np.load(file, allow_pickle=False) as held:
            mean, cov = (torch.from_numpy(np.asarray(held[name], np.float64)) for name in ("mu", "sigma"))
    except Exception as error:  # there is no telling what is raised on damaged archives
        line = str(error).split("\n")[0]
        raise ValueError(f"reference must hold arrays mu and sigma, got {file}: {line}; use another file") from error
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"reference must hold mu (d) and sigma (d, d), got {mean.shape} and {cov.shape} in {file}")
    stamp = {"external": file.name, "sha256": file_sha256(file)}
    return Reference(Gaussian(mean, cov), None, None, stamp)
