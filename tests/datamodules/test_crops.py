"""Crops: positions are uniform and determined by keys, and the held-out strip is never used in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Batch, Crops
from datamodules.crops import FixedCrops, RandomCrops, resize
from datamodules.order import sample_keys

HEIGHT, WIDTH, KEPT = 20, 40, 10  # the strip of held_out = 0.25
CHI_SQUARE = 4.0  # standard deviations that a chi-square may lie off its mean


def pixels(height: int = HEIGHT, width: int = WIDTH, image: int = 0) -> np.ndarray:
    """Images whose pixel colors are their positions: (row, column, image)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, image)], axis=2).astype(np.uint8)


def write(root: Path, *names: str, **size: int) -> Path:
    for at, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(image=at, **size)).save(root / name)
    return root


def crops(root: Path, **options: Any) -> Crops:
    return Crops(str(root), 8, **({"held_out": 0.25, "batch_size": 4, "crops": 64} | options))


def levels(batch: Batch) -> torch.Tensor:
    """Convert the colors (b, 3, h, w) back to integers."""
    return ((batch["image"] + 1) * 127.5).round().long()


def everything(data: Crops, split: str) -> Batch:
    batches = list(data.images(split, 1000))  # type: ignore[arg-type]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}  # type: ignore[literal-required, return-value]


def chi_square(counts: torch.Tensor) -> float:
    """Return the distance of the counts from uniform ones, in standard deviations of chi-square."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def test_crops_are_unchanged_pixels_of_the_file(tmp_path: Path) -> None:
    data = crops(write(tmp_path, "a.png") / "a.png")
    assert (data.channels, data.size, data.classes, data.values) == (3, 8, 0, 256)
    batch = next(iter(data.train_dataloader()))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (4, 3, 8, 8)),
        "label": (torch.int64, (4,)),
        "index": (torch.int64, (4,)),
        "key": (torch.int64, (4,)),
    }
    original = torch.from_numpy(pixels()).permute(2, 0, 1).long()
    for crop in levels(batch):
        top, left = crop[:2, 0, 0].tolist()
        assert torch.equal(crop, original[:, top : top + 8, left : left + 8])


def test_positions_are_uniform_and_independent(tmp_path: Path) -> None:
    train = crops(write(tmp_path, "a.png"), crops=50_000).dataset("train")
    assert isinstance(train, RandomCrops)
    index = np.arange(50_000)
    positions = torch.tensor(train.positions(index, sample_keys(3, 1, index)))
    down, right = HEIGHT - 8 + 1, WIDTH - KEPT - 8 + 1
    joint = positions[:, 1] * right + positions[:, 2]
    assert chi_square(positions[:, 1].bincount(minlength=down)) < CHI_SQUARE
    assert chi_square(positions[:, 2].bincount(minlength=right)) < CHI_SQUARE
    assert chi_square(joint.bincount(minlength=down * right)) < CHI_SQUARE
    assert len(joint.bincount()) == down * right  # every place, none beyond
    assert chi_square(joint[joint > 4].bincount(minlength=down * right)) > CHI_SQUARE  # five places of 299 less show


def test_a_position_is_a_function_of_the_sample(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    for flip in (False, True):
        data = crops(tmp_path, horizontal_flip=flip).dataset("train")
        batch = data.__getitems__([(5, 11), (3, 12), (5, 13)])
        for at, item in enumerate([(5, 11), (3, 12), (5, 13)]):
            assert torch.equal(data[item]["image"][0], batch["image"][at])
        assert not torch.equal(batch["image"][0], batch["image"][2])  # another key, another place
        assert levels(batch)[:, 2, 0, 0].tolist() == [1, 1, 1]  # image 5 % 2, 3 % 2, 5 % 2


def test_half_of_the_crops_are_mirrored_by_their_keys_if_asked(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    items = [(i, int(k)) for i, k in enumerate(sample_keys(0, 0, np.arange(400)))]
    straight, flipped = (
        crops(tmp_path, horizontal_flip=flip, crops=400).dataset("train").__getitems__(items)["image"]
        for flip in (False, True)
    )
    mirrored = torch.tensor([key % 2 == 1 for _, key in items])
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(flipped[mirrored], straight[mirrored].flip(-1))
    assert torch.equal(flipped[~mirrored], straight[~mirrored])


def test_training_never_sees_the_held_out_strip(tmp_path: Path) -> None:
    data = crops(write(tmp_path, "a.png", "b.png"), crops=2000, batch_size=500)
    seen = torch.cat([levels(batch)[:, 1] for batch in data.train_dataloader()])
    assert (int(seen.min()), int(seen.max())) == (0, WIDTH - KEPT - 1)
    for split in ("val", "test"):
        kept = levels(everything(data, split))[:, 1]
        assert int(kept.min()) == WIDTH - KEPT


def test_held_out_crops_tile_the_strip_and_cycle_through_the_images(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", height=30)
    data = crops(tmp_path, held_out=0.42, seed=1)
    batch = everything(data, "val")
    positions = [(int(x[2, 0, 0]), int(x[0, 0, 0]), int(x[1, 0, 0]) - 23) for x in levels(batch)]
    assert positions == [(at, top, left) for top in (0, 8, 16) for left in (0, 8) for at in (0, 1)]
    assert torch.equal(batch["image"], everything(crops(tmp_path, held_out=0.42, seed=2), "val")["image"])


def test_plain_training_crops_are_fixed(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    one, two = (everything(crops(tmp_path, seed=seed, horizontal_flip=True), "train") for seed in (1, 2))
    assert torch.equal(one["image"], two["image"])
    columns = levels(one)[:, 1, 0]
    assert (columns.diff(dim=1) == 1).all()  # none mirrored
    assert len(one["image"]) == 64
    assert one["index"].tolist() == list(range(64))
    assert isinstance(crops(tmp_path).dataset("train").plain(), FixedCrops)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [("none", 0, [0, 0, 0, 0]), ("file", 4, [0, 1, 2, 3]), ("folder", 2, [0, 0, 1, 1])],
)
def test_classes_are_files_or_folders(tmp_path: Path, labels: Any, classes: int, expected: list[int]) -> None:
    write(tmp_path, "moss/a.png", "moss/b.png", "sand/a.png", "sand/b.png")
    assert crops(tmp_path / "moss" / "a.png", labels="file").classes == 1
    data = crops(tmp_path, labels=labels)
    assert data.classes == classes
    for split in ("train", "val"):
        batch = everything(data, split)
        assert [expected[i] for i in levels(batch)[:, 2, 0, 0].tolist()] == batch["label"].tolist()
    assert everything(data, "train")["label"].bincount().tolist() == [64 // max(classes, 1)] * max(classes, 1)


def test_gray_is_the_luma(tmp_path: Path) -> None:
    data = crops(write(tmp_path, "a.png"), channels=1)
    top, left = levels(everything(crops(tmp_path), "train"))[:, :2, 0, 0].unbind(1)
    assert data.dataset("train")[0]["image"].shape == (1, 1, 8, 8)
    luma = (0.299 * top + 0.587 * left).round()
    assert torch.equal(levels(everything(data, "train"))[:, 0, 0, 0], luma.long())


def test_scaling_keeps_means_and_removes_aliasing_frequencies() -> None:
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(3, 64, 64)
    half = resize(stripes, 0.5)
    assert half.shape == (3, 32, 32)
    assert float(half.float().mean()) == pytest.approx(127.5, abs=1)
    assert float(half[:, :, 2:-2].float().std()) < 10  # of 127.5
    assert resize(stripes, 1.0) is stripes
    assert resize(stripes, 0.3).shape == (3, 19, 19)


def test_the_scale_is_applied_before_cropping(tmp_path: Path) -> None:
    root = write(tmp_path, "a.png", height=40, width=80)
    train = crops(root, scale=0.5).dataset("train")
    assert isinstance(train, RandomCrops)
    assert [tuple(image.shape) for image in train.images] == [(3, 20, 30)]
    assert train.images[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0.1}, "images must fit crops of size 8 in both the training part and the .* 4 columns held out"),
        ({"held_out": 0.9}, "images must fit crops of size 8"),
        ({"scale": 0.3}, "images must fit crops of size 8 .* of 6x12 pixels"),
        ({"scale": 1e6}, "scale 1000000.0 resizes"),
        ({"crops": 1}, "crops must be at least the number of images, got 1 for 2"),
        ({"labels": "folder"}, "labels must be none or file for images without class folders"),
    ],
)
def test_unsuitable_options_and_images_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path, "a.png", "b.png")
    with pytest.raises(ValueError, match=message):
        crops(tmp_path, **options).setup()


def test_missing_and_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root must be an image file or a folder of images"):
        crops(tmp_path / "none").setup()
    write(tmp_path, "a.png", "b.png")
    with pytest.raises(ValueError, match="labels must be none or file for images without class folders"):
        crops(tmp_path / "a.png", labels="folder").setup()
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*b\.png"):
        crops(tmp_path).setup()
