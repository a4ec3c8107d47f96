"""Latents on the pretended GPU: batches are finished and encoded without waiting, and are those of the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_caches import write_latent_cache
from pretend_gpu.marks import is_pinned
from pretend_gpu.pretended_cuda import pretended_cuda, run_on_both
from pretend_gpu.watch import Watch
from torch import Tensor

from asyncdiff.latents import Identity
from datamodules import LatentCache

SHIFT, SCALE = [0.1, -0.2], [2.0, 3.0]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        name: generator.normal(size=(8, 2, 2, 4, 4)).astype(np.float16) for name in ("mean", "logvar")
    }
    arrays |= {"label": np.arange(8) % 3, "index": np.arange(8)}
    return write_latent_cache(tmp_path, {"train": arrays, "val": arrays}, shard=3, scale=SCALE, shift=SHIFT)


@pytest.mark.parametrize("sample", [True, False])
def test_batches_are_finished_without_waiting(cache, sample):
    def flow(device: torch.device, watch: Watch) -> Tensor:
        data, images = LatentCache(str(cache), 4, channels=2, batch_size=2, sample=sample), []
        for loader in (data.train_dataloader(), data.val_dataloader()):
            for batch in loader:
                moved: Any = data.transfer_batch_to_device(batch, device, 0)
                finished = data.on_after_batch_transfer(moved, 0)
                assert finished["key"].device.type == finished["index"].device.type == "cpu"  # read without waiting
                assert finished["image"].device.type == device.type
                images.append(finished["image"])
        return torch.cat(images)

    watch, usual, there = run_on_both(flow)
    assert not watch.waits
    assert not watch.mixed
    assert torch.equal(usual, there)


def test_all_loaders_pin_their_batches(cache):
    """Also those of reference statistics and of callbacks, whose copies to the GPU then do not wait."""
    with pretended_cuda():
        data = LatentCache(str(cache), 4, channels=2, batch_size=2)
        for batches in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            assert all(is_pinned(x) for batch in batches for x in batch.values())
        for batches in (data.images("train", 3), data.images_at("val", [[0, 1], [5]])):
            assert all(is_pinned(batch["label"]) for batch in batches)  # images are computed from moments


def test_codecs_scale_latents_without_waiting():
    codec = Identity(2)
    codec.scale, codec.shift = SCALE, SHIFT

    def flow(device: torch.device, watch: Watch) -> Tensor:
        latents = torch.ones(3, 2, 4, 4, device=device)
        with torch.inference_mode():
            codec.scaled(latents)
        latents.requires_grad_()  # the constants can take part in gradients nevertheless
        (gradient,) = torch.autograd.grad(codec.unscaled(codec.scaled(latents) * 2).sum(), latents)
        return gradient

    watch, usual, there = run_on_both(flow)
    assert not watch.waits
    assert not watch.mixed
    assert torch.equal(usual, there)
    assert torch.allclose(usual, torch.full_like(usual, 2.0))
