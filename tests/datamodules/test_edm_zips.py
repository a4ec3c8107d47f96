import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import cache_fixture, encoded, labels_of, npy, seen, write_zip  # noqa: F401
from PIL import Image

from datamodules.edm_zips import EdmZip


def names(count: int, suffix: str = "png") -> list[str]:
    return [f"00000/img{i:08d}.{suffix}" for i in range(count)]


def images(count: int) -> dict[str, bytes]:
    return {name: encoded(i) for i, name in enumerate(names(count))}


def edm(root: Path, **options: Any) -> EdmZip:
    return EdmZip(str(root), 4, **({"batch_size": 4, "horizontal_flip": False} | options))


@pytest.mark.parametrize(("name", "workers"), [("a.zip", 0), ("a", 0), ("a.zip", 1)])
def test_images_have_the_labels_of_the_listing(tmp_path: Path, name: str, workers: int) -> None:
    labels = [[file, i % 7] for i, file in reversed(list(enumerate(names(40))))]
    data = edm(write_zip(tmp_path / name, images(40), labels), workers=workers, held_out=0.2)
    assert data.classes == 7
    train, val = (labels_of(data.images(split, 9)) for split in ("train", "val"))  # type: ignore[arg-type]
    assert sorted([*train, *val]) == list(range(40))
    assert train | val == {i: i % 7 for i in range(40)}
    assert set(seen(data.train_dataloader())) <= set(train)
    assert seen(data.val_dataloader()) == list(val) == seen(data.test_dataloader())


@pytest.mark.parametrize("labels", [None, "absent", []])
def test_without_labels_there_are_no_classes(tmp_path: Path, labels: Any) -> None:
    data = edm(write_zip(tmp_path / "a.zip", images(30), labels))
    assert data.classes == 0
    assert set(labels_of(data.images("train", 30)).values()) == {0}


def test_zip_and_folder_hold_out_the_same_files_for_every_seed(tmp_path: Path) -> None:
    kept = [
        seen(edm(write_zip(tmp_path / name, images(200)), held_out=0.1, seed=seed).images("val", 50))
        for seed, name in enumerate(["a.zip", "b"])
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == pytest.approx(20, abs=5 * 4.3)


def test_validation_may_come_from_another_zip(tmp_path: Path) -> None:
    root = write_zip(tmp_path / "a.zip", images(10), [[name, i % 3] for i, name in enumerate(names(10))])
    val = write_zip(tmp_path / "b.zip", images(3), [[name, 1] for name in names(3)])
    data = edm(root, val_root=str(val))
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [10, 3, 3]  # type: ignore[arg-type]
    assert data.dataset("val").classes == 3
    for labels, got in (([[name, 3] for name in names(3)], "class 3"), (None, "no labels")):
        other = write_zip(tmp_path / f"{got}.zip", images(3), labels)
        with pytest.raises(ValueError, match=rf"dataset.json of val_root must have the 3 classes .*, got {got} in"):
            edm(root, val_root=str(other)).setup()
    plain = edm(write_zip(tmp_path / "c.zip", images(10)), val_root=str(val))
    assert set(labels_of(plain.val_dataloader()).values()) == {0}


def test_arrays_are_images(tmp_path: Path) -> None:
    stored = {name: npy(np.full((3, 4, 4), i, np.uint8)) for i, name in enumerate(names(20, "npy"))}
    data = edm(write_zip(tmp_path / "a.zip", stored))
    assert sorted(seen(data.images("train", 9)) + seen(data.images("val", 9))) == list(range(20))
    gray = {name: npy(np.full((1, 8, 6), i, np.uint8)) for i, name in enumerate(names(20, "npy"))}
    assert set(seen(edm(write_zip(tmp_path / "b.zip", gray)).images("train", 9))) <= set(range(20))


def test_pixels_are_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    files = {}
    for name, image in zip(names(6), pixels, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(stream := io.BytesIO(), "PNG")
        files[name] = stream.getvalue()
    data = edm(write_zip(tmp_path / "a.zip", files), val_root=str(write_zip(tmp_path / "b.zip", images(1))))
    assert torch.equal(next(data.images("train", 6))["image"], torch.from_numpy(pixels).float().div(127.5).sub(1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[names(6)[0], 1]], r"must label every image or none, got no label for 00000/img00000001.png in .*a.zip: add"),
        (
            [[name, [0, 1, 0]] for name in names(6)],
            r"must hold non-negative integers .* got a vector for 00000/img0{8}.png in",
        ),
        ([[name, -1] for name in names(6)], r"must hold non-negative integers as labels, got -1 for .*: write the ind"),
        (
            [[name, 2**64] for name in names(6)],
            r"must hold non-negative integers as labels, got 18446744073709551616 for",
        ),
        ([[name, None] for name in names(6)], r"must hold non-negative integers as labels, got None for"),
        ([[name, 0.5] for name in names(6)], r"must hold non-negative integers as labels, got 0.5 for"),
        ({"a": 1, "bcd": 2}, r'dataset.json must be {"labels": .*, got .* in .*a.zip: correct it'),
        (7, r'dataset.json must be {"labels": \[\["name.png", 6\], ...\] or null}, got .*: correct it'),
    ],
)
def test_listings_without_classes_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        edm(write_zip(tmp_path / "a.zip", images(6), labels)).setup()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"dataset.json must be .*: correct it"):
        edm(write_zip(tmp_path / "b.zip", images(6) | {"dataset.json": b'{"labels": [["a'})).setup()


def test_missing_empty_damaged_and_too_small_zips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root must be a zip or a folder, got .*none.zip: no such file"):
        edm(tmp_path / "none.zip").setup()
    with pytest.raises(ValueError, match=r"root must hold images, got .*void.zip without any \(\.bmp .*\)"):
        edm(write_zip(tmp_path / "void.zip", {"a.txt": b""})).setup()
    cut = write_zip(tmp_path / "cut.zip", images(6))
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cut.zip cannot be read as a zip: .*; copy or write it again"):
        edm(cut).setup()
    with pytest.raises(ValueError, match=r"leave an image to train on, got .* with 1, all held out"):
        edm(write_zip(tmp_path / "one.zip", images(1))).setup()
    latents = {f"00000/img-mean-std-latents-{i:08d}.npy": npy(np.zeros((8, 4, 4), np.float32)) for i in range(3)}
    with pytest.raises(ValueError, match=r"root must hold images, got latents such as .*: use datamodules.EdmLatents"):
        edm(write_zip(tmp_path / "latents.zip", latents)).setup()


@pytest.mark.parametrize("name", ["a.zip", "a"])
def test_a_listing_may_lie_one_folder_down(tmp_path: Path, name: str) -> None:
    """As in a zip of a folder. Its names are relative to that folder."""
    listing = json.dumps({"labels": [[file, i % 3] for i, file in enumerate(names(12))]}).encode()
    below = {f"faces/{file}": data for file, data in images(12).items()} | {"faces/dataset.json": listing}
    hidden = {"__MACOSX/dataset.json": b"{", "__MACOSX/faces/._dataset.json": b"{", ".trash/dataset.json": b"{"}
    data = edm(write_zip(tmp_path / name, below | hidden), held_out=0.3)
    assert data.classes == 3
    assert labels_of(data.images("train", 9)) | labels_of(data.images("val", 9)) == {i: i % 3 for i in range(12)}


@pytest.mark.parametrize("name", ["a.zip", "a"])
def test_listings_in_several_folders_are_named(tmp_path: Path, name: str) -> None:
    listings = {"x/dataset.json": b'{"labels": null}', "y/dataset.json": b'{"labels": null}'}
    message = "dataset.json must lie at the top of .*, got x/dataset.json and y/dataset.json: move it"
    with pytest.raises(ValueError, match=message):
        edm(write_zip(tmp_path / name, images(6) | listings)).setup()


def test_a_listing_deep_in_a_zip_is_named_and_one_at_the_top_counts(tmp_path: Path) -> None:
    deep = {"x/y/dataset.json": b'{"labels": null}'}
    with pytest.raises(ValueError, match=r"must lie at the top of .*a.zip or .*, got x/y/dataset.json: move it"):
        edm(write_zip(tmp_path / "a.zip", images(6) | deep)).setup()
    labels = [[file, i] for i, file in enumerate(names(6))]
    assert edm(write_zip(tmp_path / "b.zip", images(6) | deep, labels)).classes == 6
