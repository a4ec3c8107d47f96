"""Find or download external weight files, verify their SHA-256, and read them without running any code."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncdiff.checkpoints.load import explain_load_error, find_damage_in
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.regular_files import open_regular


def published_hash(url: str) -> str:
    """Return the SHA-256 digits at the end of a file name by torch.hub's convention: NAME-6726825d.pth -> 6726825d."""
    return Path(url).stem.rsplit("-", 1)[-1]


def weight_file(path: str | None, *, url: str) -> Path:
    """Return the local file `path`; if it is None, the file from `url` in torch.hub's folder, downloaded if absent."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"weights {path} is not a file: check the path, or download {url}")
        return Path(path)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=published_hash(url), progress=False)
        except OSError as error:
            raise FileNotFoundError(
                f"{url} cannot be downloaded: {getattr(error, 'reason', error)}; "
                f"put {file.name} into {file.parent} ($TORCH_HOME/hub/checkpoints) or pass its path as weights"
            ) from error
    return file


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Any]:
    """Read the tensors in a .safetensors file, or in a file written by torch.save, without running code.

    Unlike `torch.hub.load_state_dict_from_url`, it also checks files that were not just downloaded. The file is read
    only once: the checked bytes are the loaded ones.

    Args:
        path: path of the weight file.
        sha256: first 8 to 64 hex digits of the file's SHA-256, None to accept any file.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the file has another SHA-256, contains anything but tensors, or numbers that are not finite.
    """
    with open_regular(path, "weights") as stream:
        content = stream.read()
    if sha256 is not None:
        _check_sha256(content, sha256, path)
    state = _read_state(content, path)
    if isinstance(state, Mapping):
        check_tensors(state, path, "download the file again")
    return state


def _read_state(content: bytes, path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(content)
        if damage := find_damage_in(io.BytesIO(content)):
            raise ValueError(damage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle versions of files that are not pickles
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251
            return state
    except Exception as error:  # a file of another kind can raise almost any exception
        raise ValueError(f"weights {path} cannot be read safely: {explain_load_error(error)}") from error


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, independent of their order, file and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}".encode())
        values = state[name].detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_sha256(content: bytes, sha256: str, path: Path) -> None:
    """Raise ValueError unless the SHA-256 of `content` starts with `sha256`."""
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(
            f"sha256 must be the first 8 to 64 hex digits of the file's SHA-256, got {sha256!r}: run sha256sum {path}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256.lower()):
        raise ValueError(
            f"weights {path} must have the SHA-256 {sha256}, got {digest}: download the file again, "
            "or pass its own SHA-256 as sha256 if you trust it"
        )
