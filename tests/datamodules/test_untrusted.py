"""Malicious files: images that decompress to gigabytes, and names that lead out of their folder."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_files import cache_fixture  # noqa: F401
from PIL import Image

from asyncdiff.tasks.photos import read_photo
from datamodules import EdmZip, ImageFolder
from datamodules.images.decoding import decode
from datamodules.storage.latent_shards import MANIFEST, DamagedError, open_shards
from datamodules.storage.members import open_members
from datamodules.storage.streamed_shards import _check_inside

BOUND = 178_956_970  # Pillow's: twice 2^30 / 12


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(side: int) -> bytes:
    """Encode a black square of this side length in very few bytes."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) if side < 100 else b""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


def jpeg(side: int) -> bytes:
    """A JPEG whose header states a huge size, which a decoder would allocate."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "jpeg")
    data = stream.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


BOMBS = {"png": png(20_000), "jpeg": jpeg(20_000)}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_of_too_many_pixels_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    assert len(BOMBS[kind]) < 1000 < BOUND < 20_000**2
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "good.png")
    (tmp_path / "val" / f"bomb.{kind}").write_bytes(BOMBS[kind])
    data = ImageFolder(str(tmp_path), 8, batch_size=2, on_corrupt="raise")
    with pytest.raises(ValueError, match=rf"cannot read .*bomb\.{kind}: .*exceeds limit of {BOUND} pixels") as caught:
        list(data.val_dataloader())
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=rf"bomb\.{kind}.*it is left out"):
        left = [batch["image"] for batch in ImageFolder(str(tmp_path), 8, batch_size=2).val_dataloader()]
    assert sum(map(len, left)) == 1
    with pytest.raises(ValueError, match=rf"bomb\.{kind}: .*exceeds limit"):
        read_photo(tmp_path / "val" / f"bomb.{kind}", 3)


def test_formats_that_run_another_program_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "eps")
    with pytest.raises(ValueError, match="not an image in a known format"):
        decode(np.frombuffer(stream.getvalue(), np.uint8))
    (tmp_path / "picture.png").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"picture\.png"):
        read_photo(tmp_path / "picture.png", 3)


def test_a_png_whose_pixels_fail_their_checksum_is_refused() -> None:
    """Pillow and zlib accept it: the checksum of zlib is right, that of the chunk is wrong."""
    good = png(8)
    at = good.index(b"IDAT") + 4
    wrong = good[: good.index(b"IEND") - 8] + b"\0\0\0\0" + good[good.index(b"IEND") - 4 :]
    assert decode(np.frombuffer(bytearray(good), np.uint8)).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="IDAT.* fails its checksum"):
        decode(np.frombuffer(bytearray(wrong), np.uint8))
    with pytest.raises(ValueError, match="truncated"):
        decode(np.frombuffer(bytearray(good[: at + 5]), np.uint8))


def test_no_more_is_decompressed_than_the_directory_states(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000_000))
    raw = (tmp_path / "a.zip").read_bytes()
    assert len(raw) < 20_000
    (tmp_path / "b.zip").write_bytes(raw.replace(struct.pack("<I", 10_000_000), struct.pack("<I", 100)))
    found = open_members(tmp_path / "b.zip", {".png"}, "root")
    with pytest.raises(ValueError, match="checksum"):
        found.read(0)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../secret.safetensors"])
def test_a_manifest_names_no_file_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    split = {"shape": [4, 2, 2], "views": 1, "dtype": "float16", "moments": ["mean"], "count": 1}
    shards = [{"file": name, "count": 1, "sha256": "", "header": ""}]
    with pytest.raises(DamagedError, match=rf"{MANIFEST} is damaged, it names .*secret.* outside of the cache"):
        open_shards(tmp_path / "root", split | {"shards": shards})


@pytest.mark.parametrize("name", ["../chunk.bin", "/tmp/chunk.bin", "a/../../chunk.bin", ""])
def test_an_index_of_shards_names_no_file_outside(name: str) -> None:
    _check_inside({"chunks": [{"filename": "chunk-0-0.bin"}, {"filename": "part/chunk-0-1.bin"}]}, "root")
    with pytest.raises(ValueError, match="must name files in its folder"):
        _check_inside({"chunks": [{"filename": name}]}, "root")


def test_a_listing_reads_no_file_outside(tmp_path: Path) -> None:
    """Names in dataset.json are compared with the existing files, and never opened."""
    root = tmp_path / "root"
    root.mkdir()
    labels: list[Any] = [["../outside.png", 0]]
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    for i in range(8):
        Image.new("RGB", (8, 8)).save(root / f"{i}.png")
        labels.append([f"{i}.png", i])
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    data = EdmZip(str(root), 8, held_out=0.3)
    found: list[Any] = [data.dataset("train"), data.dataset("val")]
    names = [split.name(i) for split in found for i in range(len(split))]
    assert sorted(names) == [str(root / f"{i}.png") for i in range(8)]
