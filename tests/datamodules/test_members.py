import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from encoded_files import cache_fixture  # noqa: F401

from datamodules.storage.members import FileBytes, FolderMembers, Members, ZipMembers, find_text, open_members

SUFFIXES = {".png", ".npy"}
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]


def content(i: int) -> bytes:
    return np.random.default_rng(i).integers(0, 9, 1000 + i, dtype=np.uint8).tobytes()


def write(
    file: Path, method: int = zipfile.ZIP_STORED, extra: bytes = b"", zip64: bool = False, before: bytes = b""
) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for i in reversed(range(5)):
            info = zipfile.ZipInfo(f"{i % 2:05d}/img{i:03d}.png")
            info.compress_type, info.extra = method, extra
            with archive.open(info, "w", force_zip64=zip64) as stream:
                stream.write(content(i))
        archive.writestr("dataset.json", '{"labels": null}')
        archive.writestr("empty/", b"")
    file.write_bytes(before + file.read_bytes())
    return file


def contents(found: Members) -> dict[str, bytes]:
    return {found.name(i): found.read(i).tobytes() for i in range(len(found))}


EXPECTED = {f"{i % 2:05d}/img{i:03d}.png": content(i) for i in range(5)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
@pytest.mark.parametrize("length", [0, 4, 300])  # of an extra field, which may be longer in the local header
def test_files_of_a_zip_are_sorted_by_name(
    tmp_path: Path, method: int, zip64: bool, before: bytes, length: int
) -> None:
    extra = b"\xfe\xca" + (length - 4).to_bytes(2, "little") + bytes(length - 4) if length else b""
    found = ZipMembers(write(tmp_path / "a.zip", method, extra, zip64, before), SUFFIXES)
    assert contents(found) == EXPECTED
    assert [found.name(i) for i in range(len(found))] == sorted(EXPECTED)
    assert found.read(0).flags.writeable
    assert find_text(found.root, "dataset.json") == ("", b'{"labels": null}')
    assert find_text(found.root, "other.json") is None


def test_a_file_of_a_zip_is_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems over networks take a millisecond for each."""
    found = ZipMembers(write(tmp_path / "a.zip", zip64=True), SUFFIXES)
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(given) or preadv(*given))  # type: ignore[func-returns-value]
    assert contents(found) == EXPECTED
    assert len(read) == len(EXPECTED)


def test_folder_and_zip_are_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "a")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_bytes(b"")
    found = open_members(tmp_path / "a", SUFFIXES, "root")
    assert isinstance(found, FolderMembers)
    assert list(contents(found).items()) == list(contents(open_members(file, SUFFIXES, "root")).items())
    assert find_text(found.root, "dataset.json") == ("", b'{"labels": null}')
    assert find_text(found.root, "other.json") is None


def test_the_directory_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.zip")
    ZipMembers(file, SUFFIXES)
    (entry,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", None)
        assert contents(ZipMembers(file, SUFFIXES)) == EXPECTED
    assert [*cache.iterdir()] == [entry]


def test_a_descriptor_is_shared_over_a_fork_and_opened_again_elsewhere(tmp_path: Path) -> None:
    found = ZipMembers(write(tmp_path / "a.zip"), SUFFIXES)
    assert contents(found) == EXPECTED
    child = os.fork()
    if not child:
        os._exit(0 if all(contents(found) == EXPECTED for _ in range(100)) else 1)
    assert all(contents(found) == EXPECTED for _ in range(100))
    assert os.waitpid(child, 0)[1] == 0
    again = pickle.loads(pickle.dumps(found))
    assert contents(again) == EXPECTED
    descriptor = again.bytes._descriptor
    assert descriptor != found.bytes._descriptor
    os.fstat(descriptor)
    del again
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_bytes_are_read_in_parts_and_no_memory_is_used_for_missing_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abcdefg")
    with pytest.raises((ValueError, MemoryError), match=r"the file ends \d+ bytes too early|Unable to allocate"):
        FileBytes(tmp_path / "a").read(1, 1 << 44)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: preadv(file, [parts[0][:2]], offset))
    assert FileBytes(tmp_path / "a").read(1, 5).tobytes() == b"bcdef"
    with pytest.raises(ValueError, match="the file ends 1 bytes too early"):
        FileBytes(tmp_path / "a").read(1, 7)


@pytest.mark.parametrize("method", METHODS)
def test_damaged_files_are_refused(tmp_path: Path, method: int) -> None:
    file = write(tmp_path / "a.zip", method=method)
    begins = ZipMembers(file, SUFFIXES).places[:, 0].tolist()
    data = bytearray(file.read_bytes())
    data[begins[1] + 300] ^= 16
    data[begins[2]] ^= 1
    file.write_bytes(data)
    found = ZipMembers(file, SUFFIXES)
    with pytest.raises(Exception, match=r"checksum|decompress"):
        found.read(1)
    with pytest.raises(ValueError, match="no file starts at byte"):
        found.read(2)
    os.truncate(file, begins[0] + 500)
    with pytest.raises(ValueError, match=r"the file ends \d+ bytes too early"):
        found.read(0)
    with pytest.raises(ValueError, match=r"a\.zip cannot be read as a zip: .*; copy or write it again"):
        ZipMembers(file, SUFFIXES)


def test_sizes_beyond_all_files_are_refused(tmp_path: Path) -> None:
    """The size of a member has 64 bits in the extra field of the directory."""
    file = write(tmp_path / "a.zip", extra=struct.pack("<HHQ", 1, 8, 2**64 - 1))
    data = bytearray(file.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 24 : entry + 28] = b"\xff" * 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip cannot be read as a zip: .*; copy or write it again"):
        ZipMembers(file, SUFFIXES)


def test_other_compression_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match=r"must hold stored or deflated files, got 00000/img000\.png .*: write it"):
        ZipMembers(file, SUFFIXES)
    with pytest.raises(FileNotFoundError, match=r"root must be a zip or a folder, got .*none.zip: no such file; check"):
        open_members(tmp_path / "none.zip", SUFFIXES, "root")


def test_a_cycle_of_links_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list(contents(FolderMembers(tmp_path, SUFFIXES))) == ["a/x.png"]
