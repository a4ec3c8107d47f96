"""Latent caches as data: content and distribution of batches, and caches that are refused."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_caches import write_latent_cache
from torch import Tensor

from datamodules import LatentCache
from datamodules.counter_noise import counter_normal
from datamodules.order import sample_keys
from datamodules.storage.latent_shards import MANIFEST, shard_name

COUNT, SHARD, CHANNELS, SIZE = {"train": 90, "val": 20}, 40, 2, 4
SCALE, SHIFT = [0.5, 2.0], [1.0, -1.0]


def stored(split: str, count: int) -> dict[str, np.ndarray]:
    """Means that encode image, view and channel; standard deviations of 1/2 and 1/8."""
    rows = np.arange(count, dtype=np.float64)[:, None, None, None, None]
    views, channels = np.arange(2)[None, :, None, None, None], np.arange(CHANNELS)[None, None, :, None, None]
    shape = (count, 2, CHANNELS, SIZE, SIZE)
    mean = np.broadcast_to(rows / 8 + 16 * views + 32 * channels, shape)
    logvar = np.broadcast_to(np.log([0.25, 1 / 64])[None, None, :, None, None], shape)
    label, index = np.arange(count) % 3, np.arange(count)
    return {"mean": mean, "logvar": logvar, "label": label, "index": index}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    splits = {split: stored(split, count) for split, count in COUNT.items()}
    return write_latent_cache(tmp_path, splits, shard=SHARD, scale=SCALE, shift=SHIFT)


def latents(root: Path, **options: Any) -> LatentCache:
    return LatentCache(str(root), **({"size": SIZE, "channels": CHANNELS, "batch_size": 10} | options))


def in_model_space(raw: Tensor) -> Tensor:
    return (raw - torch.tensor(SHIFT)[:, None, None]) * torch.tensor(SCALE)[:, None, None]


def means(index: Tensor, view: Tensor) -> Tensor:
    """Return the stored means of these images and views, in model space."""
    return in_model_space(torch.tensor(stored("train", COUNT["train"])["mean"])[index, view].float())


def finished(data: LatentCache) -> list[Any]:
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_latent_is_read_once_per_epoch_in_the_view_of_its_key(root: Path, workers: int) -> None:
    batches = finished(latents(root, sample=False, workers=workers))
    index, key, image, label = (torch.cat([b[n] for b in batches]) for n in ("index", "key", "image", "label"))
    assert sorted(index.tolist()) == list(range(90))
    assert torch.equal(label, index % 3)
    assert image.dtype == torch.float32
    assert torch.equal(image, means(index, key % 2))
    assert 20 < (key % 2).sum() < 70


def test_training_samples_from_the_posterior_with_noise_of_the_keys(root: Path) -> None:
    data = latents(root)
    batch = torch.cat([b["image"] - means(b["index"], b["key"] % 2) for b in finished(data)])
    deviation = torch.tensor([0.5, 0.125]) * torch.tensor(SCALE)
    count = 90 * SIZE**2
    assert batch.std((0, 2, 3)).tolist() == pytest.approx(deviation.tolist(), rel=5 / (2 * count) ** 0.5)
    assert (batch.mean((0, 2, 3)).abs() < 5 * deviation / count**0.5).all()
    train = data.dataset("train")
    items = list(zip(range(30), sample_keys(0, 3, np.arange(30)).tolist(), strict=True))
    together = train.__getitems__(items)["image"]
    apart = torch.cat([train.__getitems__(items[i : i + 7])["image"] for i in range(0, 30, 7)])
    assert torch.equal(together, apart)
    other = train.__getitems__([(i, key + 2) for i, key in items])["image"]
    assert not torch.equal(together, other)


def test_validation_is_the_same_every_time_and_commands_get_the_means(root: Path) -> None:
    data = latents(root)
    once, again = ([data.on_after_batch_transfer(b, 0)["image"] for b in data.val_dataloader()] for _ in range(2))
    assert torch.equal(torch.cat(once), torch.cat(again))
    for batch in data.images("train", 32):
        assert torch.equal(batch["image"], means(batch["index"], torch.zeros(len(batch["index"]), dtype=torch.int64)))
    assert data.dataset("test") is data.dataset("val")
    assert data.classes == 3


def test_no_latents_are_pickled_for_workers(root: Path) -> None:
    train = latents(root).dataset("train")
    before = train.__getitems__([(3, 4)])["image"]
    assert len(pickle.dumps(train)) < 5000
    assert torch.equal(pickle.loads(pickle.dumps(train)).__getitems__([(3, 4)])["image"], before)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of the open files")
def test_a_shard_keeps_one_file_open_from_its_first_read(root: Path) -> None:
    """A cache of a million latents has hundreds of shards, and a process may have 1024 open files."""
    count = [len(os.listdir("/proc/self/fd"))]
    train = latents(root).dataset("train")
    for index in (0, 1, SHARD, 2 * SHARD, 0):
        count.append(len(os.listdir("/proc/self/fd")))
        train.__getitems__([(index, 0)])
    assert [number - count[0] for number in count] == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, r"channels must be 2 as in the cache .*, got 4: set channels: 2"),
        ({"size": 32}, r"size must match the 4x4 latents of the cache .*, got 32: .* encode images of 256 pixels"),
    ],
)
def test_a_cache_of_other_shapes_than_the_model_is_refused(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        latents(root, **options).setup()
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_named(root: Path) -> None:
    name = shard_name("train", 1, 3)
    full = (root / name).read_bytes()
    (root / name).write_bytes(full[:-8])
    with pytest.raises(ValueError, match=rf"{name} is damaged, it must have {len(full)} bytes, got {len(full) - 8}"):
        latents(root).setup()
    flipped = bytearray(full)
    flipped[-1] ^= 1
    (root / name).write_bytes(flipped)
    latents(root).setup()  # sizes and headers are right
    with pytest.raises(ValueError, match=rf"{name} is damaged, its SHA-256"):
        latents(root, verify=True).setup()
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        latents(root).setup()
    (root / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"with an incomplete cache: run the command \(again\)"):
        latents(root).setup()
    shutil.rmtree(root)
    with pytest.raises(FileNotFoundError, match="without a cache"):
        latents(root).setup()


def test_manifests_of_another_version_without_validation_or_views_are_refused(root: Path) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    del manifest["sha256"]
    text = json.dumps(manifest)
    for old, new, message in [
        ('"version": 1', '"version": 2', "must have version 1, got 2"),
        ('"val":', '"test":', r"got .* without val: run the command again with --splits val"),
        ('"views": 2', '"views": 1', "horizontal_flip must be false for a cache without mirrored views"),
    ]:
        (root / MANIFEST).write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            latents(root).setup()


# The noise


def test_the_noise_is_standard_normal() -> None:
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(500)))
    noise = counter_normal(keys, (4, 25, 20)).double()
    n = noise.numel()
    assert abs(noise.mean()) < 5 / n**0.5
    assert noise.square().mean() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert noise.pow(3).mean() == pytest.approx(0, abs=5 * (15 / n) ** 0.5)
    assert noise.pow(4).mean() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)


@pytest.mark.parametrize("keys", [torch.arange(2000), torch.from_numpy(sample_keys(0, 0, np.arange(2000)))])
def test_neighboring_keys_and_elements_are_independent(keys: Tensor) -> None:
    noise = counter_normal(keys, (101,)).double()
    n = noise.numel()
    for shift, axis in ((1, 0), (1, 1), (2, 1), (50, 1)):
        product = noise * noise.roll(shift, axis)
        assert abs(product.mean()) < 5 / n**0.5
        squares = (noise.square() - 1) * (noise.square() - 1).roll(shift, axis)
        assert abs(squares.mean()) < 5 * 2 / n**0.5


def test_an_element_depends_on_its_key_and_position_only() -> None:
    keys = torch.arange(10)
    full = counter_normal(keys, (3, 7))
    assert torch.equal(counter_normal(keys[4:6], (3, 7)), full[4:6])
    assert torch.equal(counter_normal(keys, (21,)), full.flatten(1))
    assert len(full.flatten().unique()) == full.numel()
