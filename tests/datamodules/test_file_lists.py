import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import ImageFolder
from datamodules.hash_split import hash_fraction, is_held_out
from datamodules.images.image_files import ImageFiles
from datamodules.index_cache import MappedArray
from datamodules.storage import file_lists
from datamodules.storage.file_lists import FileList, file_list, list_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(folder))
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat more than two files as many."""
    monkeypatch.setattr(file_lists, "FEW", 2)


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def age(root: Path) -> None:
    """Set the modification times of the folders to a minute ago."""
    past = time.time() - 60
    for folder, _, _ in os.walk(root):
        os.utime(folder, (past, past))


def test_only_visible_images_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "x/b.JPG", "x/c.jpeg", ".hidden.png", ".git/d.png", "x/._c.jpeg", "notes.txt", "x/c.npz")
    (tmp_path / "png").write_text("no image")
    (tmp_path / "x" / "circle").symlink_to(tmp_path)
    (tmp_path / "x" / "self").symlink_to(tmp_path / "x" / "self")
    assert list_images(tmp_path) == ["a.png", "x/b.JPG", "x/c.jpeg"]


def test_a_folder_named_like_an_image_is_a_folder_and_a_broken_link_a_file(tmp_path: Path) -> None:
    write(tmp_path, "x.jpg/a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert list_images(tmp_path) == ["gone.png", "x.jpg/a.png"]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    assert list_images(tmp_path / "root") == ["cat/a.png"]


def test_of_several_links_to_a_folder_the_first_name_is_listed_on_every_file_system(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a.png")
    (tmp_path / "root").mkdir()
    for name in np.random.default_rng(0).permutation(20).tolist():
        (tmp_path / "root" / f"{name:02}").symlink_to(tmp_path / "elsewhere")
    assert list_images(tmp_path / "root") == ["00/a.png"]


def test_a_list_is_sorted_by_full_paths_and_has_the_classes(tmp_path: Path) -> None:
    names = ["b/2.png", "a/z/1.png", "a-b/0.png", "a/b.png", "B/é.png"]
    found = file_list(write(tmp_path, *names))
    assert found.paths() == sorted(names)
    assert found.class_names(tmp_path) == ["B", "a", "a-b", "b"]
    assert [found.class_names(tmp_path)[i] for i in found.folders] == [name.split("/")[0] for name in sorted(names)]
    assert found.labels(["a", "x", "b", "B", "a-b"]).tolist() == [3, 4, 0, 0, 2]
    assert found.shares.tolist() == [hash_fraction(name) for name in sorted(names)]


def test_held_out_files_depend_on_their_path_only() -> None:
    fractions = np.array([hash_fraction(f"{i}.png") for i in range(4000)])
    held_out = is_held_out(fractions, 0.1)
    assert held_out.sum() == pytest.approx(400, abs=5 * 19)
    assert np.array_equal(is_held_out(fractions[:2000], 0.1), held_out[:2000])
    assert hash_fraction("cat/0.png") == 0.10168010684117694  # on every machine, in every version
    assert hash_fraction("e\u0301.png") == hash_fraction("\u00e9.png")
    assert is_held_out(fractions[:3], 1e-6).sum() == 1


def same(a: FileList, b: FileList) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_long_list_is_cached_and_equals_a_short_one(tmp_path: Path, cache: Path) -> None:
    write(tmp_path, *(f"{name}/{i}.png" for name in "abc" for i in range(3)))
    age(tmp_path)
    short = file_list(tmp_path)
    assert not list(cache.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_lists, "FEW", 2)
        first = file_list(tmp_path)
        patch.setattr(file_lists, "_arrays", lambda found: pytest.fail("listed again"))
        second = file_list(tmp_path)
    assert same(short, first)
    assert same(short, second)
    assert all(isinstance(array, MappedArray) for array in second)


def test_a_long_flat_list_is_cached_too(tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *(f"{i}.png" for i in range(5)))
    age(tmp_path)
    first = file_list(tmp_path)
    monkeypatch.setattr(file_lists, "_arrays", lambda found: pytest.fail("listed again"))
    assert same(first, file_list(tmp_path))
    assert first.class_names(tmp_path) == []


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "a folder more", "deep in a folder"])
def test_changes_are_detected(tmp_path: Path, few: None, change: str) -> None:
    write(tmp_path, *(f"{name}/{i}.png" for name in "abc" for i in range(3)), "c/deep/0.png")
    age(tmp_path)
    before = file_list(tmp_path).paths()
    if change == "removed":
        (tmp_path / "b" / "1.png").unlink()
    elif change == "renamed":
        (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "9.png")
    else:
        write(tmp_path, {"added": "a/9.png", "a folder more": "d/0.png"}.get(change, "c/deep/1.png"))
    expected = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    for _ in range(2):
        assert file_list(tmp_path).paths() == expected != before


def test_a_change_within_the_time_resolution_is_detected(tmp_path: Path, few: None) -> None:
    write(tmp_path, *(f"a/{i}.png" for i in range(3)))
    now = time.time_ns()
    os.utime(tmp_path / "a", ns=(now, now))
    assert len(file_list(tmp_path).names) == 3
    write(tmp_path, "a/3.png")
    os.utime(tmp_path / "a", ns=(now, now))
    assert len(file_list(tmp_path).names) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_read_permission_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"cannot list .*b: Permission denied; make it readable"):
            list_images(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)


def test_the_splits_of_long_and_short_lists_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(60):
        name = tmp_path / "ab"[at % 2] / f"{at}.png"
        name.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), at).save(name)
    age(tmp_path)

    def splits() -> list[tuple[str, list[bytes], list[int]]]:
        data = [ImageFolder(str(tmp_path), 4, held_out=0.2, batch_size=4).dataset(s) for s in ("train", "val")]  # type: ignore[arg-type]
        assert all(isinstance(part, ImageFiles) for part in data)
        return [(part.fingerprint(), part.names.tolist(), part.labels.tolist()) for part in data]  # type: ignore[attr-defined]

    short = splits()
    monkeypatch.setattr(file_lists, "FEW", 2)
    assert short == splits() == splits()
