import errno
import os
import tempfile
from pathlib import Path

import pytest

from asyncdiff.output_paths import check_output_file, check_output_folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Working directory with a file, links that lead nowhere or in a circle, a run and an export."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("nowhere").symlink_to("missing")
    Path("circle").symlink_to("circle")
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    for run in ("run/config.yaml", "export/model.safetensors", "weights/step=1.ckpt"):
        Path(run).parent.mkdir()
        Path(run).write_text("")
    return tmp_path


BAD = {
    "file/x": "file: Not a directory",
    "nowhere/x": "nowhere is a link that leads nowhere",
    "circle/x": "circle is a link that leads nowhere",
    "x" * 300: "a name in it is too long",
    f"new/{'x' * 300}/y": "a name in it is too long",
    "é" * 200: "a name in it is too long",
    "a/" * 2100 + "x": "a name in it is too long",
}


@pytest.mark.parametrize("path", BAD)
def test_paths_that_cannot_be_written_are_refused_and_nothing_is_created(path, folder):
    before = sorted(folder.rglob("*"))
    for check, kind in ((check_output_folder, "a folder"), (check_output_file, "a file")):
        with pytest.raises(ValueError, match=r"^--output must be ") as refusal:
            check(Path(path), "--output")
        rule = f"--output must be {kind} that can be written, got {Path(path)}: {BAD[path]}: choose another path"
        assert str(refusal.value) == rule
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_the_system_refuses_is_said(number, monkeypatch):
    def refuse(dir):
        raise OSError(number, os.strerror(number), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for path in ("folder", "folder/new/x"):
        with pytest.raises(ValueError, match=f"got {path}: folder: {os.strerror(number)}: choose another path"):
            check_output_folder(Path(path))
    with pytest.raises(ValueError, match=f"got folder/x: folder: {os.strerror(number)}"):
        check_output_file(Path("folder/x"))


def test_what_is_in_the_way():
    with pytest.raises(ValueError, match="output must be a folder, got the existing file file: choose another path"):
        check_output_folder(Path("file"))
    with pytest.raises(ValueError, match="output must be a file, got the existing folder folder: choose another path"):
        check_output_file(Path("folder"))
    with pytest.raises(ValueError, match="output must be a file, got the device or pipe /dev/null"):
        check_output_file(Path("/dev/null"))
    with pytest.raises(ValueError, match="got nowhere: it is a link that leads nowhere: choose another path"):
        check_output_file(Path("nowhere"))


def test_files_of_a_run_or_an_export_are_not_mixed_with_others():
    for folder, own in (("run", "config.yaml"), ("export", "model.safetensors"), ("weights", "step=1.ckpt")):
        with pytest.raises(ValueError, match=f"must not be the folder of a run or an export, got {folder}, .* {own}:"):
            check_output_folder(Path(folder))
        check_output_folder(Path(folder), may_be_a_run=True)
        check_output_folder(Path(folder) / "images")


def test_what_can_be_written_is_permitted(folder):
    before = sorted(folder.rglob("*"))
    for path in ("folder", "link", "new", "folder/new/deep", ".", str(folder), "é" * 100, "x" * 255):
        check_output_folder(Path(path))
    for path in ("file", "link/x", "new/deep/x", "x" * 175):
        check_output_file(Path(path))
    assert sorted(folder.rglob("*")) == before
