"""Only regular files are opened; everything else is refused at once, with its kind."""

import os
import socket

import pytest

from datamodules.regular_files import check_regular, open_regular


def special_files(folder):
    """Paths that are not regular files, with the words for their kinds."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    (folder / "link").symlink_to("pipe")
    kinds = {"pipe": "a named pipe", "socket": "a socket", "link": "a named pipe", ".": "a folder"}
    return {folder / name: kind for name, kind in kinds.items()} | {"/dev/zero": "a device"}


def test_special_files_are_refused_without_waiting(tmp_path):
    for path, kind in special_files(tmp_path).items():
        for check in (open_regular, check_regular):
            with pytest.raises(ValueError, match=rf"^mask must be a regular file, got \S+, {kind}: check the path$"):
                check(path, "mask")


def test_a_regular_file_is_read_through_links_and_keeps_its_name(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "b").symlink_to("a")
    for buffering in (-1, 0):
        with open_regular(tmp_path / "b", buffering=buffering) as stream:
            assert stream.read() == b"bytes"
            assert stream.name == str(tmp_path / "b")
            assert not os.get_inheritable(stream.fileno())


def test_missing_files_raise_what_open_raises(tmp_path):
    for check in (open_regular, check_regular):
        with pytest.raises(FileNotFoundError):
            check(tmp_path / "missing")
