import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import grays
from PIL import Image

from datamodules import Batch, ImageFolder
from datamodules.images.image_files import ImageFiles

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet_sample" / "train"


def write(root: Path, *names: str) -> Path:
    """Write gray images whose brightness is their index in the list of names."""
    for at, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (at, at, at)).save(root / name)
    return root


def numbered(count: int, folder: str = "") -> list[str]:
    return [f"{folder}{i:03d}.png" for i in range(count)]


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), 4, **({"batch_size": 4} | options))


def labels(batches: Iterable[Batch]) -> list[int]:
    return [label for batch in batches for label in batch["label"].tolist()]


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"{name}/deeper/{i}.png" for name in ("b", "a", "c") for i in range(10)]
    data = folder(write(tmp_path, *names), held_out=0.3)
    assert (data.classes, data.channels, data.size) == (3, 3, 4)
    for split in ("train", "val"):
        dataset = data.dataset(split)
        assert isinstance(dataset, ImageFiles)
        assert [dataset.path(i).parts[-3] for i in range(len(dataset))] == ["abc"[i] for i in dataset.labels]
    assert sorted(labels([*data.images("train", 7), *data.images("val", 7)])) == [0] * 10 + [1] * 10 + [2] * 10


def test_a_flat_folder_has_no_labels_and_its_split_no_seed(tmp_path: Path) -> None:
    write(tmp_path, *numbered(30))
    data, other = (folder(tmp_path, seed=seed, held_out=0.25) for seed in (0, 1))
    assert data.classes == 0
    assert set(labels(data.images("train", 8))) == {0}
    assert data.dataset("val").fingerprint() == other.dataset("val").fingerprint()


def test_batches_have_the_documented_types_and_shapes(tmp_path: Path) -> None:
    data = folder(write(tmp_path, *numbered(30)), channels=1)
    carried = next(iter(data.train_dataloader()))
    finished = data.on_after_batch_transfer(carried, 0)
    for batch, kind in ((carried, torch.uint8), (finished, torch.float32)):
        assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
            "image": (kind, (4, 1, 4, 4)),
            "label": (torch.int64, (4,)),
            "index": (torch.int64, (4,)),
            "key": (torch.int64, (4,)),
        }
    white = Image.new("L", (4, 4), 255)
    white.save(tmp_path / "000.png")
    both = torch.cat([b["image"] for split in ("train", "val") for b in data.images(split, 8)])  # type: ignore[arg-type]
    assert both.max() == 1
    assert both.min() == pytest.approx(-1 + 1 / 127.5)


@pytest.mark.parametrize(("val", "sizes"), [(3, [8, 3, 2]), (0, [8, 2, 2])])
def test_folders_named_as_splits_are_the_splits(tmp_path: Path, val: int, sizes: list[int]) -> None:
    data = folder(write(tmp_path, *numbered(8, "train/a/"), *numbered(val, "val/a/"), *numbered(2, "test/a/")))
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == sizes  # test replaces a missing val
    assert data.classes == 1
    with pytest.raises(ValueError, match="val_root must be left out"):
        folder(tmp_path, val_root=str(tmp_path / "test")).setup()


def test_val_root_is_another_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", *numbered(5, "cat/"), *numbered(5, "dog/"))
    write(tmp_path / "b", *numbered(2, "dog/"))
    data = folder(tmp_path / "a", val_root=str(tmp_path / "b"))
    assert len(data.dataset("train")) == 10
    assert labels(data.val_dataloader()) == [1, 1]
    same = folder(tmp_path / "a", val_root=str(tmp_path / "a"))
    assert len(same.dataset("train")) == len(same.dataset("val")) == 10


def test_the_key_decides_which_half_is_mirrored(tmp_path: Path) -> None:
    left_is_black = Image.fromarray(np.repeat([[0, 0, 255, 255]], 4, axis=0).astype(np.uint8))
    (tmp_path / "a").mkdir()
    for name in numbered(500):
        left_is_black.save(tmp_path / "a" / name)
    data = folder(tmp_path / "a", batch_size=400)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    mirrored = batch["image"][:, 0, 0, 0] == 1
    assert mirrored.float().mean() == pytest.approx(0.5, abs=5 * 0.5 / 20)
    again = data.dataset("train").__getitems__(list(zip(batch["index"].tolist(), batch["key"].tolist(), strict=True)))
    assert torch.equal(again["image"], batch["image"])
    straight = folder(tmp_path / "a", horizontal_flip=False).train_dataloader()
    for batches in (data.val_dataloader(), data.images("train", 100), straight):
        assert not any(any(grays(batch["image"])) for batch in batches)


def damaged(root: Path) -> Path:
    """Write ten training and four validation images, of which 003, 004 and one for validation are truncated."""
    write(root, *numbered(10, "train/"), *numbered(4, "val/"))
    for name in ("train/003.png", "train/004.png", "val/001.png"):
        (root / name).write_bytes((root / name).read_bytes()[:40])
    return root


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_uses_the_next_file_and_evaluation_none(tmp_path: Path, workers: int) -> None:
    data = folder(damaged(tmp_path), workers=workers, batch_size=5, horizontal_flip=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = list(data.train_dataloader())
        assert [len(batch["label"]) for batch in batches] == [5, 5]
        used = sorted(value for batch in batches for value in grays(batch["image"]))
        assert used == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
        assert all(grays(batch["image"]) == batch["index"].tolist() for batch in batches)
        assert [i for batch in data.val_dataloader() for i in batch["index"].tolist()] == [0, 2, 3]
        assert [i for batch in data.images("train", 4) for i in batch["index"].tolist()] == [0, 1, 2, 5, 6, 7, 8, 9]
    flags = data.dataset("train")
    assert isinstance(flags, ImageFiles)
    assert flags.unreadable.nonzero().flatten().tolist() == [3, 4]  # set by the workers


def test_each_unreadable_file_is_reported_once(tmp_path: Path) -> None:
    data = folder(damaged(tmp_path))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            for batches in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
                list(batches)
            list(data.images("train", 2))
    reports = [str(warning.message) for warning in record if "cannot read" in str(warning.message)]
    found = sorted(report.split(": ")[0].removeprefix(f"cannot read {tmp_path}/") for report in reports)
    assert found == ["train/003.png", "train/004.png", "val/001.png"]


def test_training_stops_if_nothing_can_be_read(tmp_path: Path) -> None:
    write(tmp_path, *numbered(6, "train/"), *numbered(2, "val/"))
    for name in numbered(6, "train/"):
        (tmp_path / name).write_bytes(b"")
    data = folder(tmp_path)
    refused = pytest.raises(ValueError, match=r"6 files in a row cannot be read, starting with .*: replace them")
    with pytest.warns(UserWarning, match="cannot read"), refused:
        list(data.train_dataloader())


def test_evaluation_skips_an_unreadable_batch(tmp_path: Path) -> None:
    write(tmp_path, *numbered(6, "train/"), *numbered(5, "val/"))
    (tmp_path / numbered(5, "val/")[-1]).write_bytes(b"")
    data = folder(tmp_path, eval_batch_size=4)
    with pytest.warns(UserWarning, match="cannot read"):
        batches, shown = list(data.val_dataloader()), list(data.images("val", 4))
    assert [len(batch["image"]) for batch in batches] == [4, 0]
    assert batches[1]["image"].shape[1:] == batches[0]["image"].shape[1:]
    assert [len(batch["image"]) for batch in shown] == [4]


REFUSED = [
    (["notes.txt"], r"root must contain images, got .* without any \(\.bmp .*\): check"),
    (["a.png"], "leave an image to train on, got .* with 1, all held out"),
    (["cat/a.png", "stray.png"], r"got both in .* \(such as stray\.png\)"),
    (["train/a.png", "valid/b.png"], "validation folder val, got .* with train and valid: rename valid to val"),
    (["train/cat/a.png", "val/cow/a.png"], "must occur in training, got 'cow'"),
    (["train/cat/a.png", "val/a.png"], "must lie in class folders as in training"),
]


@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_unsuitable_folders_are_refused_at_setup(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        folder(tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"root must be a folder of images, got .*none: no such folder"):
        folder(tmp_path / "none").setup("fit")
    with pytest.raises(FileNotFoundError, match=r"val_root must be .*none"):
        folder(write(tmp_path / "one", "a.png"), val_root=str(tmp_path / "none")).setup("fit")


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="sample photographs are not here")
def test_photographs_of_a_thousand_classes() -> None:
    data = ImageFolder(str(PHOTOGRAPHS), 64, batch_size=16, held_out=0.05)
    assert data.classes == 1000
    assert len(data.dataset("train")) + len(data.dataset("val")) == 1000
    batch = next(data.images("val", 16))
    assert batch["image"].shape == (16, 3, 64, 64)
    assert 0.3 < batch["image"].std() < 0.8
