import errno
import multiprocessing
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from encoded_files import cache_fixture  # noqa: F401

from datamodules import ImageNet64
from datamodules.images.pixel_arrays import PixelArray
from datamodules.index_cache import MappedArray
from datamodules.storage import npz_batches
from datamodules.storage.imagenet_classes import SORTED, SORTED_INDEX

pytestmark = pytest.mark.filterwarnings("ignore:.*holds . of 10 training files")

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet_sample" / "downsampled64"
SIZE = 4


def arrays(seed: int, count: int, size: int = SIZE) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(seed)
    return {
        "data": noise.integers(0, 256, (count, 3 * size * size), dtype=np.uint8),
        "labels": noise.integers(1, 1001, count),
        "mean": np.zeros(3 * size * size),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training files, one stored and one deflated, and a validation file, without the published `mean`."""
    folder = tmp_path / "root"
    folder.mkdir()
    np.savez(folder / "train_data_batch_1.npz", **arrays(1, 5))
    np.savez_compressed(folder / "train_data_batch_2.npz", **arrays(2, 7))
    val = arrays(3, 6)
    np.savez(folder / "val_data.npz", data=val["data"], labels=val["labels"])
    return folder


def imagenet64(root: Path, **options: Any) -> ImageNet64:
    return ImageNet64(str(root), **({"size": SIZE, "batch_size": 4, "horizontal_flip": False} | options))


def full_split(data: ImageNet64, split: Any) -> dict[str, torch.Tensor]:
    batches = list(data.images(split, 4))
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "label")}  # type: ignore[literal-required]


def test_images_and_labels_are_those_of_the_files(root: Path) -> None:
    data = imagenet64(root)
    assert (data.classes, data.channels, data.size) == (1000, 3, SIZE)
    assert data.label_names == SORTED
    for split, files in {"train": [arrays(1, 5), arrays(2, 7)], "val": [arrays(3, 6)]}.items():
        read = full_split(data, split)
        pixels = np.concatenate([file["data"] for file in files]).reshape(-1, 3, SIZE, SIZE)
        numbers = np.concatenate([file["labels"] for file in files])
        assert read["image"].dtype == torch.float32
        assert torch.equal(read["image"], torch.from_numpy(pixels).float() / 127.5 - 1)
        assert read["label"].tolist() == SORTED_INDEX[numbers - 1].tolist()
    assert data.dataset("test") is data.dataset("val")


def test_loaders_transfer_bytes_and_the_key_decides_which_half_is_mirrored(root: Path) -> None:
    data = imagenet64(root, horizontal_flip=True)
    train = data.dataset("train")
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert batch["image"].dtype == torch.uint8
        image = data.on_after_batch_transfer(batch, 0)["image"]
        plain = train.plain().__getitems__(batch["index"].tolist())["image"]
        mirrored = batch["key"] % 2 == 1
        assert image.dtype == torch.float32
        assert torch.equal(image[mirrored], plain[mirrored].flip(-1))
        assert torch.equal(image[~mirrored], plain[~mirrored])
    both = train.__getitems__([(3, 2), (3, 5)])["image"]
    assert not torch.equal(both[1], both[0])


def test_files_are_merged_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet64(root, converted=str(root / "own")).setup()
    assert any((root / "own").glob("pixels4-*/train.npy"))
    imagenet64(root).prepare_data()
    (made,) = (entry for entry in cache.iterdir() if entry.is_dir())
    monkeypatch.setattr(npz_batches, "_make", lambda *_, **__: pytest.fail("made again"))
    data = imagenet64(root)
    data.prepare_data()
    train = data.dataset("train")
    assert isinstance(train, PixelArray)
    assert isinstance(train.pixels, MappedArray)
    assert Path(train.pixels.place[0]).parent == made  # type: ignore[index]


def test_changed_files_are_merged_again(root: Path) -> None:
    before = imagenet64(root).dataset("train")
    np.savez(root / "train_data_batch_2.npz", **arrays(4, 7))
    after = imagenet64(root).dataset("train")
    assert before.fingerprint() != after.fingerprint()
    pixels = torch.from_numpy(arrays(4, 7)["data"][0].reshape(3, SIZE, SIZE)).float() / 127.5 - 1
    assert torch.equal(after.__getitems__([5])["image"][0], pixels)


@pytest.mark.parametrize("locks", [True, False])
def test_leftovers_of_a_killed_process_are_not_used(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """On file systems without locks they stay, as another process may be writing them."""
    imagenet64(root).prepare_data()
    (made,) = (entry for entry in cache.iterdir() if entry.is_dir())
    left = cache / f".{made.name}-half"
    made.rename(left)
    (left / "train.npy").write_bytes(b"")
    if not locks:
        monkeypatch.setattr(npz_batches.fcntl, "flock", mock.Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    assert len(full_split(imagenet64(root), "train")["image"]) == 12
    assert left.exists() == (not locks)


def _prepare(root: str) -> None:
    ImageNet64(root, SIZE).prepare_data()


def test_processes_wait_for_each_other(root: Path, cache: Path) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=_prepare, args=(str(root),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 1
    assert len(full_split(imagenet64(root), "train")["image"]) == 12


def refused(root: Path, message: str, kind: type[Exception] = ValueError, **options: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        imagenet64(root, **options).setup()
    assert "\n" not in str(caught.value)


def test_missing_and_other_files_are_named(root: Path) -> None:
    with pytest.warns(UserWarning, match=r"holds 2 of 10 training files: training uses only these"):
        imagenet64(root).setup()
    refused(root, r"size must be 4 as in .*batch_1\.npz, got 8: change size", size=8)
    np.savez(root / "train_data_batch_4.npz", **arrays(4, 3))
    refused(root, r"root must hold train_data_batch_3\.npz, got .* without", FileNotFoundError)
    (root / "train_data_batch_4.npz").unlink()
    (root / "val_data.npz").unlink()
    refused(root, r"root must hold val_data\.npz, got .* without", FileNotFoundError)
    (root / "train_data_batch_1.npz").rename(root / "train_data_batch_1")
    (root / "train_data_batch_2.npz").unlink()
    refused(root, r"got a pickle, which can run any code when read, in .*: if you trust it, run numpy\.savez\(")
    shutil.rmtree(root)
    refused(root, "root must be a folder, got .*: no such folder", FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1, 2])}, r"labels of .* must be 3 integers from 1 to 1000, got 3 from 0 to 2"),
        ({"labels": np.array([1, 1001, 2])}, "from 1 to 1001"),
        ({"labels": np.array([1, 2])}, "got 2 from 1 to 2"),
        ({"labels": None}, r"must hold data and labels, got: .*labels"),
        ({"data": None}, "must hold data and labels, got: .*data"),
        ({"labels": np.array([{}, {}, {}])}, "cannot be read: .*allow_pickle"),
        ({"data": np.zeros((3, 48), np.float32)}, "its data must be uint8 in C order, got float32"),
        ({"data": np.asfortranarray(np.zeros((3, 48), np.uint8))}, "got uint8 in Fortran order"),
        ({"data": np.zeros((3, 3, 4, 4), np.uint8)}, r"must have shape \(n, 48\), got \(3, 3, 4, 4\)"),
        (
            {"data": np.zeros((0, 48), np.uint8), "labels": np.zeros(0, int)},
            r"must have shape \(n, 48\), got \(0, 48\)",
        ),
    ],
)
def test_unsuitable_arrays_are_refused(root: Path, change: dict[str, Any], message: str) -> None:
    made = {key: value for key, value in (arrays(1, 3) | change).items() if value is not None}
    np.savez(root / "train_data_batch_2.npz", **made)
    refused(root, rf"train_data_batch_2\.npz.*{message}|{message}.*train_data_batch_2\.npz|{message}")


@pytest.mark.parametrize("damage", ["cut", "text", "flipped"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_refused(root: Path, cache: Path, damage: str, save: Any) -> None:
    file = root / "train_data_batch_1.npz"
    save(file, **arrays(1, 40))
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[1000] ^= 255  # among the images
    file.write_bytes({"cut": data[: len(data) // 2], "text": b"no zip", "flipped": data}[damage])
    refused(root, r"train_data_batch_1\.npz cannot be read: .*; download it again")
    assert not [entry for entry in cache.glob("*") if entry.is_dir()]  # nothing half made is left


def test_folders_that_are_full_closed_or_damaged_are_refused(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").write_text("")
    refused(root, r"converted must be a writable folder, got .*file: ", converted=str(root / "file"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 100))  # type: ignore[attr-defined]
        refused(root, r"converted must have 0\.3 GB free, got 0\.0 GB in .*cache: free some, or set it to")
    imagenet64(root).setup()
    (file,) = cache.glob("pixels4-*/train.npy")
    content = file.read_bytes()
    for damaged in (content[:-1], content.replace(b")", b" ", 1)):
        file.write_bytes(damaged)
        refused(root, r"pixels4-.* is damaged: .*; delete the folder")


@pytest.mark.parametrize(
    "pixels", [np.zeros((3, 1, 4, 4)), np.zeros((3, 16), np.uint8), np.zeros((2, 1, 4, 4), np.uint8)]
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be uint8 of shape \(n, c, size, size\) with n labels"):
        PixelArray(pixels, np.zeros(3, int), classes=0, flip=False)  # type: ignore[arg-type]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="sample photographs are not here")
def test_photographs_have_the_labels_of_the_table() -> None:
    data = ImageNet64(str(SAMPLE), batch_size=100)
    rows = [line.split("\t") for line in (SAMPLE.parent / "classes.tsv").read_text().splitlines()[1:]]
    starts = {"train_data_batch_1": ("train", 0), "train_data_batch_2": ("train", 400), "val_data": ("val", 0)}
    read: dict[str, list[int]] = {split: full_split(data, split)["label"].tolist() for split in ("train", "val")}
    for place, _, _, _, _, file, row in rows:
        split, start = starts[file]
        assert read[split][start + int(row)] == int(place)
    assert (len(read["train"]), len(read["val"])) == (800, 200)
    batch = next(iter(data.images("val", 50)))
    assert 0.3 < batch["image"].std() < 0.8
