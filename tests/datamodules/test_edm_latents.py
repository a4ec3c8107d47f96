import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_files import cache_fixture, npy, write_zip  # noqa: F401

from datamodules.edm_latents import SCALE, SHIFT, EdmLatents


def moments(i: int, deviation: float = 0.5) -> np.ndarray:
    """Means i + channel, and one standard deviation."""
    mean = np.full((4, 8, 8), i, np.float32) + np.arange(4, dtype=np.float32)[:, None, None]
    return np.concatenate([mean, np.full((4, 8, 8), deviation, np.float32)])


def write(file: Path, arrays: list[np.ndarray]) -> Path:
    files = {f"00000/img-mean-std-latents-{i:08d}.npy": npy(array) for i, array in enumerate(arrays)}
    return write_zip(file, files, [[name, i % 3] for i, name in enumerate(files)])


def latents(root: Path, **options: Any) -> EdmLatents:
    return EdmLatents(str(root), 8, **({"batch_size": 5, "val_root": str(root)} | options))


def test_means_are_shifted_and_scaled(tmp_path: Path) -> None:
    data = latents(write(tmp_path / "a.zip", [moments(i) for i in range(20)]))
    assert data.classes == 3
    (batch,) = data.images("train", 20)
    raw = np.stack([moments(i)[:4] for i in range(20)])
    expected = (raw - np.array(SHIFT)[:, None, None]) * np.array(SCALE)[:, None, None]
    assert np.abs(batch["image"].numpy() - expected).max() < 1e-5
    assert batch["label"].tolist() == [i % 3 for i in range(20)]


def test_samples_have_the_stored_mean_and_standard_deviation_and_depend_on_the_key(tmp_path: Path) -> None:
    root = write(tmp_path / "a.zip", [moments(0, deviation=0.25)] * 40)
    data = latents(root, shift=(0, 0, 0, 0), scale=(1, 1, 1, 1)).dataset("train")
    items = [(i, 1000 + i) for i in range(40)]
    batch = data.__getitems__(items)
    noise = (batch["image"] - torch.arange(4.0)[:, None, None]) / 0.25
    assert noise.mean() == pytest.approx(0, abs=5 / noise.numel() ** 0.5)
    assert noise.std() == pytest.approx(1, abs=5 / (2 * noise.numel()) ** 0.5)
    alone = torch.cat([data.__getitems__([item])["image"] for item in items])
    assert torch.equal(alone, batch["image"])  # whatever the batch
    other = data.__getitems__([(i, key + 1) for i, key in items])
    assert torch.equal(other["image"][:-1], batch["image"][1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_training_noise_is_new_and_validation_noise_the_same(tmp_path: Path, workers: int) -> None:
    data = latents(write(tmp_path / "a.zip", [moments(i) for i in range(10)]), workers=workers)

    def finished(loader: Any) -> torch.Tensor:
        batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        return torch.cat([batch["image"][batch["index"].argsort()] for batch in batches])

    loader = data.train_dataloader()
    first = finished(loader)
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not torch.equal(finished(loader), first)
    assert torch.equal(finished(data.val_dataloader()), finished(data.val_dataloader()))
    means = latents(tmp_path / "a.zip", sample=False)
    assert torch.equal(
        means.on_after_batch_transfer(next(iter(means.val_dataloader())), 0)["image"],
        next(data.images("val", 5))["image"],
    )


def test_damaged_latents_are_left_out(tmp_path: Path) -> None:
    arrays = [moments(i) for i in range(10)]
    arrays[3], arrays[4] = arrays[3][:6], np.full_like(arrays[4], np.nan)
    arrays[5] = -arrays[5]
    data = latents(write(tmp_path / "a.zip", arrays))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [i for batch in data.val_dataloader() for i in batch["index"].tolist()] == [0, 1, 2, 6, 7, 8, 9]
        used = sorted(i for batch in data.train_dataloader() for i in batch["index"].tolist())
        assert used == [0, 1, 2, 6, 6, 6, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"latents-00000003.npy: its array must be floats \(8, 8, 8\), got float32 of"):
        list(latents(tmp_path / "a.zip", on_corrupt="raise").val_dataloader())


def test_other_arrays_are_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.zip", [moments(i) for i in range(10)])
    with pytest.raises(
        ValueError, match=r"00000000.npy is not a latent of EDM2: .* floats \(8, 16, 16\), got float32 of"
    ):
        EdmLatents(str(tmp_path / "a.zip"), 16).setup()
    write(tmp_path / "b.zip", [np.zeros((3, 8, 8), np.uint8)] * 5)
    with pytest.raises(
        ValueError, match=r"is not a latent of EDM2: .*, got uint8 of .*; set size and channels, or use Ed"
    ):
        latents(tmp_path / "b.zip").setup()
