import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datamodules.storage.members import FolderMembers, Members, ZipMembers, open_members

SUFFIXES = {".png", ".npy"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content(i: int) -> bytes:
    return np.random.default_rng(i).integers(0, 9, 1000 + i, dtype=np.uint8).tobytes()


def write(
    file: Path, count: int = 5, method: int = zipfile.ZIP_STORED, extra: bytes = b"", zip64: bool = False
) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for i in reversed(range(count)):
            info = zipfile.ZipInfo(f"{i % 2:05d}/img{i:03d}.png")
            info.compress_type, info.extra = method, extra
            with archive.open(info, "w", force_zip64=zip64) as stream:
                stream.write(content(i))
        archive.writestr("dataset.json", '{"labels": null}')
        archive.writestr("empty/", b"")
    return file


def names(found: Members) -> list[str]:
    return [found.name(i) for i in range(len(found))]


def contents(found: Members) -> dict[str, bytes]:
    return {found.name(i): found.read(i).tobytes() for i in range(len(found))}


EXPECTED = {f"{i % 2:05d}/img{i:03d}.png": content(i) for i in range(5)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("zip64", [False, True])
def test_files_of_a_zip_are_sorted_by_name(tmp_path: Path, method: int, zip64: bool) -> None:
    found = ZipMembers(write(tmp_path / "a.zip", method=method, zip64=zip64), SUFFIXES)
    assert names(found) == sorted(EXPECTED)
    assert contents(found) == EXPECTED
    assert found.read(0).flags.writeable
    assert found.text("dataset.json") == b'{"labels": null}'
    assert found.text("other.json") is None


@pytest.mark.parametrize("length", [4, 60, 64, 300])
def test_local_headers_may_be_longer_than_the_directory_says(tmp_path: Path, length: int) -> None:
    # zipfile writes force_zip64's extra field into the local header only, next to the one that is in both.
    extra = b"\xfe\xca" + (length - 4).to_bytes(2, "little") + bytes(length - 4)
    assert contents(ZipMembers(write(tmp_path / "a.zip", extra=extra, zip64=True), SUFFIXES)) == EXPECTED


def test_a_zip_behind_other_bytes_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip")
    file.write_bytes(b"#!/bin/sh\n" + file.read_bytes())
    assert contents(ZipMembers(file, SUFFIXES)) == EXPECTED


def test_folder_and_zip_are_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "a")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_bytes(b"")
    found = open_members(tmp_path / "a", SUFFIXES, "root")
    assert isinstance(found, FolderMembers)
    assert names(found) == sorted(EXPECTED)
    assert contents(found) == contents(open_members(file, SUFFIXES, "root"))
    assert found.text("dataset.json") == b'{"labels": null}'
    assert found.text("other.json") is None


def test_the_directory_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.zip")
    ZipMembers(file, SUFFIXES)
    (entry,) = cache.iterdir()
    monkeypatch.setattr(zipfile, "ZipFile", None)
    again = ZipMembers(file, SUFFIXES)
    assert contents(again) == EXPECTED
    assert [*cache.iterdir()] == [entry]
    monkeypatch.undo()


def test_a_descriptor_is_shared_over_a_fork_and_opened_again_elsewhere(tmp_path: Path) -> None:
    found = ZipMembers(write(tmp_path / "a.zip"), SUFFIXES)
    first = found.read(0).tobytes()
    child = os.fork()
    if not child:
        os._exit(0 if all(contents(found) == EXPECTED for _ in range(100)) else 1)
    assert all(contents(found) == EXPECTED for _ in range(100))
    assert os.waitpid(child, 0)[1] == 0
    again = pickle.loads(pickle.dumps(found))
    assert again.read(0).tobytes() == first
    descriptor = again._descriptor
    os.fstat(descriptor)
    del again
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_files_are_refused(tmp_path: Path, method: int) -> None:
    file = write(tmp_path / "a.zip", method=method)
    found = ZipMembers(file, SUFFIXES)
    data = bytearray(file.read_bytes())
    data[int(found.begins[1]) + 300] ^= 16
    data[int(found.begins[2])] ^= 1
    file.write_bytes(data)
    found = ZipMembers(file, SUFFIXES)
    with pytest.raises((ValueError, Exception), match=r"checksum|decompress"):
        found.read(1)
    with pytest.raises(ValueError, match="no file starts at byte"):
        found.read(2)
    os.truncate(file, int(found.begins[0]) + 500)
    with pytest.raises(ValueError, match=r"the zip ends \d+ bytes too early"):
        found.read(0)
    with pytest.raises(ValueError, match=r"a\.zip cannot be read as a zip: .*; copy or write it again"):
        ZipMembers(file, SUFFIXES)


def test_other_compression_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match=r"must hold stored or deflated files, got 00000/img000\.png .*: write it"):
        ZipMembers(file, SUFFIXES)
    with pytest.raises(FileNotFoundError, match=r"root must be a zip or a folder, got .*none.zip: no such file; check"):
        open_members(tmp_path / "none.zip", SUFFIXES, "root")
