"""Every listing leaves out the names that operating systems and programs add; no listing depends on them."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from encoded_files import cache_fixture, encoded, labels_of, unpack, write_zip  # noqa: F401

from datamodules import EdmZip, ImageFolder, ImageNet, Lsun, hidden_names, index_cache
from datamodules.base import ImageDataModule
from datamodules.hidden_names import is_hidden
from datamodules.storage import file_lists
from datamodules.storage.file_lists import list_images
from datamodules.storage.imagenet_tars import tar_index
from datamodules.storage.members import FolderMembers, Members, ZipMembers

VISIBLE = {f"n0000000{i % 2}/{i}.png": encoded(i) for i in range(8)}
HIDDEN = dict.fromkeys(
    (
        *(
            "._n00000000",
            "n00000000/._0.png",
            "n00000001/.1.png",
            "__MACOSX/n00000000/0.png",
            ".ipynb_checkpoints/9.png",
        ),
        *("n00000001/.cache/8.png", "@eaDir/0.png", "n00000000/@eaDir/0.png/SYNOPHOTO_THUMB_B.jpg", "thumbs.db/1.png"),
    ),
    b"not an image",
)


def write_tar(file: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def names(members: Members) -> list[str]:
    return [members.name(i) for i in range(len(members))]


def listings(folder: Path, files: dict[str, bytes]) -> dict[str, list[str]]:
    """Names of the images that each kind of listing finds."""
    root = unpack(folder / "files", files)
    return {
        "folder": list_images(root),
        "EDM's folder": names(FolderMembers(root, {".png", ".jpg"})),
        "zip": names(ZipMembers(write_zip(folder / "a.zip", files), {".png", ".jpg"})),
        "tar": tar_index(write_tar(folder / "a.tar", files))[0].paths(),
    }


def test_every_listing_finds_the_same(tmp_path: Path) -> None:
    assert all(map(is_hidden, HIDDEN))
    found = listings(tmp_path, VISIBLE | HIDDEN)
    assert found == dict.fromkeys(found, sorted(VISIBLE))


def modules(root: Path) -> list[ImageDataModule]:
    options: dict[str, Any] = {"size": 4, "batch_size": 4, "horizontal_flip": False, "workers": 0}
    return [
        ImageFolder(str(root), held_out=0.3, **options),
        EdmZip(str(root), held_out=0.3, **options),
        EdmZip(str(root.with_suffix(".zip")), held_out=0.3, **options),
    ]


def test_training_data_and_their_order_do_not_depend_on_hidden_files(tmp_path: Path) -> None:
    for name, files in (("clean", VISIBLE), ("copied", VISIBLE | HIDDEN)):
        unpack(tmp_path / name, files)
        write_zip(tmp_path / f"{name}.zip", files)
    for clean, copied in zip(modules(tmp_path / "clean"), modules(tmp_path / "copied"), strict=True):
        assert clean.classes == copied.classes
        for split in ("train", "val"):
            assert labels_of(clean.images(split, 4)) == labels_of(copied.images(split, 4)) != {}  # type: ignore[arg-type]
            assert clean.dataset(split).fingerprint() == copied.dataset(split).fingerprint()  # type: ignore[arg-type]


def test_lists_cached_by_an_earlier_rule_are_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys contain the number of the rule."""
    monkeypatch.setattr(file_lists, "FEW", 2)
    everything = VISIBLE | HIDDEN
    with monkeypatch.context() as earlier:
        for module in ("file_lists", "members", "imagenet_tars"):
            earlier.setattr(f"datamodules.storage.{module}.is_hidden", lambda path: False)
            earlier.setattr(f"datamodules.storage.{module}.RULE", hidden_names.RULE - 1)
        found = listings(tmp_path, everything)
        assert {name: len(paths) for name, paths in found.items()} == dict.fromkeys(found, 16)
    for folder, _, _ in os.walk(tmp_path):
        os.utime(folder, (0, 0))
    entries = len(list(index_cache.cache_folder().iterdir()))
    found = listings(tmp_path, everything)
    assert found == dict.fromkeys(found, sorted(VISIBLE))
    assert len(list(index_cache.cache_folder().iterdir())) == entries + 3


def test_hidden_folders_are_no_databases_and_no_classes(tmp_path: Path) -> None:
    for folder in ("bedroom_train_lmdb", "._bedroom_train_lmdb"):
        unpack(tmp_path / "lsun" / folder, {"data.mdb": b""})
    assert [folder.name for folder in Lsun(str(tmp_path / "lsun"), 4)._folders()] == ["bedroom_train_lmdb"]
    for split in ("train", "val"):
        unpack(tmp_path / "imagenet" / split, VISIBLE | HIDDEN)
    assert ImageNet(str(tmp_path / "imagenet"), 4, batch_size=2).classes == 2


@pytest.mark.parametrize("place", ["class/x.png", "dataset.json"])
def test_a_named_pipe_among_the_files_never_blocks(tmp_path: Path, place: str) -> None:
    unpack(tmp_path / "data", {f"class/{i}.png": encoded(i) for i in range(6)})
    os.mkfifo(tmp_path / "data" / place)
    data = EdmZip(str(tmp_path / "data"), 4, batch_size=2, held_out=0.3, on_corrupt="raise", workers=0)
    with pytest.raises(ValueError, match="must be a regular file, got .*, a named pipe"):
        [labels_of(data.images(split, 9)) for split in ("train", "val")]


def test_a_named_pipe_as_an_archive_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(ValueError, match=r"^root must be a regular file, got \S+a.zip, a named pipe: check the path$"):
        EdmZip(str(tmp_path / "a.zip"), 4).setup()
