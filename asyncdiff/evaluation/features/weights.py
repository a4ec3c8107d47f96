"""Weight files from elsewhere: found or fetched, checked against their SHA-256, and read without running any code."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncdiff.checkpoints import reason


def published_hash(url: str) -> str:
    """First hex digits of a file's SHA-256, as torch.hub's file names end: NAME-6726825d.pth -> 6726825d."""
    match = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", url)
    if match is None:
        raise ValueError(f"url must end in -HASH.EXTENSION to tell its SHA-256, got {url}: pass sha256 as well")
    return match[1]


def weight_file(path: str | None, *, url: str) -> Path:
    """The local file `path`; without one, the file of `url` in torch.hub's folder, fetched if it is not there yet."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"weights must be an existing file, got {path}: download {url} and give its path")
        return Path(path)
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if not file.is_file():
        _fetch(url, file)
    return file


def read_weights(path: Path, *, sha256: str) -> dict[str, Any]:
    """The tensors in `path`, once its SHA-256 is found to start with `sha256` (8 to 64 hex digits).

    The bytes that were checked are the bytes that are read, and `weights_only` keeps pickled code from running.
    """
    content = path.read_bytes()
    _check(content, sha256, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's versions, for files that are no pickle
            held: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # files of other things end in any of them
        raise ValueError(f"weights must be a file that can be read safely, got {path}: {reason(error)}") from error
    return held


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors, whatever file and order they came in and wherever they are."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}".encode())
        values = state[name].detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Any]:
    """The tensors of a .safetensors file, or of one that torch.save wrote: neither can run code.

    Args:
        path: the file.
        sha256: first 8 to 64 hex digits of the file's SHA-256, None to take any.
    """
    if path.suffix != ".safetensors":
        return read_weights(path, sha256=file_sha256(path) if sha256 is None else sha256)
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    _check(content, sha256, path)
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(f"weights must be a file of safetensors, got {path}: {line}; fetch it again") from error


def _check(content: bytes, sha256: str | None, path: Path) -> None:
    """Refuse bytes of another hash than one that is given."""
    if sha256 is None:
        return
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 must be the first 8 to 64 hex digits of the file's SHA-256, got {sha256!r}")
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256.lower()):
        raise ValueError(
            f"weights must have the SHA-256 {sha256}, got {found} for {path}: fetch the file again, "
            f"or pass its own hash as sha256 if you trust it"
        )


def _fetch(url: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=published_hash(url), progress=False)
    except OSError as error:
        raise FileNotFoundError(
            f"weights must be a local file where {url} cannot be fetched, got {getattr(error, 'reason', error)}: "
            f"put {file.name} into {file.parent} ($TORCH_HOME/hub/checkpoints) or pass its path as weights"
        ) from error
