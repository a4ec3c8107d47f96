"""Arrays on disk as training data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import Arrays

LATENTS = np.random.default_rng(0).standard_normal((50, 4, 8, 8)).astype(np.float16)
LABELS = np.arange(50) % 5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    np.save(tmp_path / "train.npy", LATENTS)
    np.save(tmp_path / "train_labels.npy", LABELS)
    return tmp_path


def arrays(root: Path, **options) -> Arrays:
    return Arrays(str(root), 8, batch_size=10, **options)


def test_batches_are_the_stored_values_times_the_scale(root):
    data = arrays(root, scale=0.5, held_out=0.1)
    assert (data.channels, data.size, data.classes) == (4, 8, 5)
    batches = {split: next(data.images(split, 50)) for split in ("train", "val")}
    assert [len(batches[split]["image"]) for split in ("train", "val")] == [45, 5]
    stored = torch.from_numpy(LATENTS.astype(np.float32)) / 2
    kept = list(range(9, 50, 10))  # evenly, also where a file is sorted by class
    assert torch.equal(batches["val"]["image"], stored[kept])
    rest = [i for i in range(50) if i not in kept]
    assert torch.equal(batches["train"]["image"], stored[rest])
    assert batches["train"]["label"].tolist() == LABELS[rest].tolist()
    assert batches["train"]["image"].dtype == torch.float32
    assert len(data.dataset("test")) == 5


def test_val_npy_is_the_validation_split(root):
    np.save(root / "val.npy", LATENTS[:7].astype(np.float32))
    np.save(root / "val_labels.npy", LABELS[:7])
    data = arrays(root)
    assert len(data.dataset("train")) == 50
    assert torch.equal(next(data.images("val", 9))["image"], torch.from_numpy(LATENTS[:7].astype(np.float32)))


def test_without_labels_there_are_no_classes(root):
    (root / "train_labels.npy").unlink()
    data = arrays(root)
    assert data.classes == 0
    assert not next(iter(data.train_dataloader()))["label"].any()
    assert len(data.dataset("val")) == 1  # at least


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train", None, "root must hold train.npy, got .* without"),
        ("train", np.array([print], dtype=object), "train.npy is not an array that can be read safely"),
        ("train", LATENTS[:, :3], r"floats of shape \(n, 4, 8, 8\), got float16 of \(50, 3, 8, 8\)"),
        ("train", np.zeros((5, 4, 8, 8), np.uint8), "train.npy must hold floats .*, got uint8"),
        ("train", LATENTS[:0], r"train.npy must hold floats .* of \(0, 4, 8, 8\)"),
        ("train_labels", LABELS[:9], "a non-negative integer for each of the 50 images, got int64 of .9,"),
        ("train_labels", LABELS - 1, "a non-negative integer"),
        ("val", LATENTS[:3], "val_labels.npy must have the 5 classes of training, got others"),
    ],
)
def test_unsuitable_files_are_refused(name, array, message, root):
    (root / f"{name}.npy").unlink(missing_ok=True)
    if array is not None:
        np.save(root / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        arrays(root).setup()
