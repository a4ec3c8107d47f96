"""Small images as encoded files and their archives, what is read from them, and an index cache for each test."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(name="cache", autouse=True)
def cache_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the index cache of a test."""
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(gray: int, kind: str = "PNG", size: tuple[int, int] = (4, 4)) -> bytes:
    """Encode an image of one gray level, which `seen` recognizes."""
    stream = io.BytesIO()
    Image.new("RGB", size, (gray, gray, gray)).save(stream, kind)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Encode an array as the content of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def unpack(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, which is returned."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(file: Path, files: Mapping[str, bytes], labels: Any = "absent") -> Path:
    """Write a zip, or a folder if the name has no suffix, with a dataset.json of these labels; return it."""
    files = dict(files) if labels == "absent" else {**files, "dataset.json": json.dumps({"labels": labels}).encode()}
    if file.suffix != ".zip":
        return unpack(file, files)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file


def write_lmdb(folder: Path, values: Sequence[bytes], keys: Sequence[bytes] | None = None) -> Path:
    """Write a database of these values, and return its folder; the default keys are numbers of 40 digits."""
    import lmdb

    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=1 << 28)
    with environment.begin(write=True) as transaction:
        for key, value in zip(keys or [b"%040x" % i for i in range(len(values))], values, strict=True):
            transaction.put(key, value)
    environment.close()
    (folder / "lock.mdb").unlink()
    return folder


def grays(image: torch.Tensor) -> list[int]:
    """Return the gray level of each image; loaders carry bytes, finished batches floats."""
    values = image[:, 0, 0, 0]
    return values.tolist() if values.dtype == torch.uint8 else ((values + 1) * 127.5).round().int().tolist()


def seen(batches: Any) -> list[int]:
    """Return the gray levels of all images of some batches."""
    return [gray for batch in batches for gray in grays(batch["image"])]


def labels_of(batches: Any) -> dict[int, int]:
    """Return the label of each gray level in some batches."""
    return {gray: label for b in batches for gray, label in zip(grays(b["image"]), b["label"].tolist(), strict=True)}
