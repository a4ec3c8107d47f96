"""Partial updates: exact where they claim to be, approximate elsewhere, and cheaper."""

import pytest
import torch
from sampling_setup import GAUSSIAN, network_denoiser, random_images, run
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff import AsyncDiffusion
from asyncdiff.networks.unet import UNet
from asyncdiff.randomness import seeded
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.partial_updates import PartialUpdates
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.step_rules import Tolerance

SHAPE = (1, 8, 8)


@pytest.fixture
def denoiser():
    return network_denoiser()


@pytest.fixture(params=[{}, {"rope": True, "qk_norm": True}, {"joint_labels": True, "uncertainty": True}], ids=str)
def any_denoiser(request):
    """Return a denoiser for each kind of DiT."""
    return network_denoiser(**{"uncertainty": False} | request.param)


def inputs(batch=3):
    return (
        random_images(batch, SHAPE),
        torch.rand(batch, 4, 4, generator=seeded(1), dtype=torch.float64),
        torch.arange(batch),
    )


def test_evaluating_all_patches_equals_the_plain_network(denoiser):
    x_t, t, label = inputs()
    partial_updates = PartialUpdates(denoiser, 4)
    partial_updates.moving = torch.zeros(3, 4, 4, dtype=torch.bool)
    assert torch.allclose(partial_updates(x_t, t, label).v, denoiser(x_t, t, label).v, rtol=0, atol=1e-12)


def test_moving_patches_are_exact_if_nothing_changed(any_denoiser):
    """Cached keys and values are those of the same images: updating any part of them gives the same velocities."""
    denoiser, (x_t, t, label) = any_denoiser, inputs()
    partial_updates, exact = PartialUpdates(denoiser, 100), denoiser(x_t, t, label).v
    for seed in range(4):
        partial_updates.moving = torch.rand(3, 4, 4, generator=seeded(seed)) < 0.3 * seed
        assert torch.allclose(partial_updates(x_t, t, label).v, exact, rtol=0, atol=1e-12)


def test_moving_patches_attend_to_fresh_moving_and_cached_other_patches(any_denoiser):
    denoiser, (x_t, t, label) = any_denoiser, inputs()
    moving = torch.zeros(3, 4, 4, dtype=torch.bool)
    moving[0, 1:3, 1:3], moving[1, 0, 0] = True, True  # none in the third
    partial_updates = PartialUpdates(denoiser, 100)
    partial_updates.moving = moving
    before = partial_updates(x_t, t, label).v
    pixels = moving.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    changed = torch.where(pixels, x_t + 1, x_t)
    partial_updates.moving = moving
    after = partial_updates(changed, t, label).v
    assert torch.equal(after[~pixels.expand_as(after)], before[~pixels.expand_as(after)])
    exact = denoiser(changed, t, label).v
    assert 0 < (after - exact)[pixels].abs().max() < (before - exact)[pixels].abs().max()
    partial_updates.moving = torch.ones_like(moving)
    assert torch.allclose(partial_updates(changed, t, label).v, exact, rtol=0, atol=1e-12)


def test_images_without_moving_patches_keep_their_cache(denoiser):
    """Whatever they look like in between; they are in the batch of an image that moves."""
    x_t, t, label = inputs()
    partial_updates = PartialUpdates(denoiser, 100)
    nothing, last = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    last[:, 3, 3] = True
    first = nothing.clone()
    first[0, 0, 0] = True
    partial_updates.moving = nothing
    exact = partial_updates(x_t, t, label).v
    partial_updates.moving = first
    assert torch.equal(partial_updates(x_t + 1, t, label).v[1:], exact[1:])
    partial_updates.moving = last
    assert torch.allclose(partial_updates(x_t, t, label).v[1:], exact[1:], rtol=0, atol=1e-12)


def test_all_patches_are_refreshed_periodically(denoiser):
    x_t, t, label = inputs()
    partial_updates = PartialUpdates(denoiser, 3)
    nothing = torch.zeros(3, 4, 4, dtype=torch.bool)
    fresh = []
    for _ in range(7):
        x_t = x_t + 1
        partial_updates.moving = nothing
        fresh.append(torch.allclose(partial_updates(x_t, t, label).v, denoiser(x_t, t, label).v, rtol=0, atol=1e-12))
    assert fresh == [step in (0, 2, 5) for step in range(7)]  # the first, then in the middle between 0, 3, 6


@pytest.mark.parametrize("margin", [1, 2, 10**12])
def test_patches_within_the_margin_are_updated(denoiser, margin):
    """The margin is computed as if it moved, and nothing beyond it is."""
    x_t, t, label = inputs()
    moving, wide = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    moving[0, 1, 0], moving[1, 3, 3] = True, True
    wide[0, max(1 - margin, 0) : 2 + margin, : 1 + margin], wide[1, 3 - margin :, 3 - margin :] = True, True
    found = []
    for patches, by in ((moving, margin), (wide, 0)):
        partial_updates = PartialUpdates(denoiser, 100, by)
        for image in (x_t, x_t + 1):
            partial_updates.moving = patches
            v = partial_updates(image, t, label).v
        found.append(v)
    assert torch.equal(*found)
    assert not torch.equal(found[0][:2], denoiser(x_t, t, label).v[:2])


def test_refresh_1_equals_the_plain_network(denoiser):
    """Equal bit for bit: no cache is used, so every evaluation is a plain call."""
    caches, hook = [], lambda _, args, options: caches.append(options.get("kv_cache"))
    denoiser.network.register_forward_pre_hook(hook, with_kwargs=True)
    for sampler in (Sampler(steps=4), Autoregressive(steps_per_patch=1), Adaptive(Tolerance(0.3), steps=4)):
        run(sampler, denoiser, [1, 2], SHAPE, label=torch.arange(2))
    assert len(caches) > 4 + 16
    assert set(caches) == {None}


def test_a_patch_that_stopped_moving_is_updated_once_more(denoiser):
    """A patch that has arrived at a new level is computed there once, although it no longer moves."""
    x_t, t, label = inputs()
    partial_updates = PartialUpdates(denoiser, 100)
    first = torch.zeros(3, 4, 4, dtype=torch.bool)
    first[:, 0] = True
    partial_updates.moving = first
    partial_updates(x_t, t, label)
    pixels = first.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    x_t, t = torch.where(pixels, x_t / 2, x_t), t.masked_fill(first, 0)
    partial_updates.moving = ~first
    assert torch.allclose(partial_updates(x_t, t, label).v, denoiser(x_t, t, label).v, rtol=0, atol=1e-12)


def test_partial_updates_save_computation():
    """Inpainting one quarter of 256 tokens: counted operations of a whole trajectory."""
    denoiser = network_denoiser(dim=64, depth=3, classes=0, uncertainty=False)
    image, known = random_images(1, (1, 32, 32)), torch.ones(1, 32, 32, dtype=torch.bool)
    known[:, :16, :16] = False
    operations = []
    for refresh in (1, 1000):
        with FlopCounterMode(display=False) as counter:
            run(Sampler(steps=20, refresh=refresh), denoiser, [0], (1, 32, 32), image=image, known=known)
        operations.append(counter.get_total_flops())
    assert operations[1] < 0.35 * operations[0]


def test_partial_updates_with_a_level_map_coarser_than_the_tokens():
    denoiser, x_t = network_denoiser(level_patch_size=4, classes=0), random_images(2, SHAPE)
    t = torch.rand(2, 2, 2, generator=seeded(1), dtype=torch.float64)
    partial_updates = PartialUpdates(denoiser, 100)
    for moving in (torch.ones(2, 2, 2, dtype=torch.bool), torch.tensor([[[True, False], [False, False]]] * 2)):
        partial_updates.moving = moving
        got, exact = partial_updates(x_t, t), denoiser(x_t, t)
        assert torch.allclose(got.v, exact.v, rtol=0, atol=1e-12)
        assert torch.allclose(got.logvar, exact.logvar, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [Sampler, Autoregressive, Adaptive])
def test_margin_needs_refresh_above_1(make):
    with pytest.raises(ValueError, match="margin must be 0 with refresh 1, which computes all patches, got 2"):
        make(margin=2)
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        make(refresh=4, margin=-1)
    assert make(refresh=4, margin=2).margin == 2


@pytest.mark.parametrize("kind", [Sampler, Adaptive])
def test_margin_as_wide_as_the_grid_equals_the_exact_sampler(denoiser, kind):
    """All patches are computed in every step, through the cache."""
    options = {"step_rule": Tolerance(0.3)} if kind is Adaptive else {}
    exact, wide = (
        run(kind(steps=6, **options, **skip), denoiser, [1, 2], SHAPE, label=torch.arange(2))
        for skip in ({}, {"refresh": 50, "margin": 4})
    )
    assert torch.allclose(wide, exact, rtol=0, atol=1e-10)


def test_module_without_kv_cache_is_rejected_when_built():
    network = UNet(1, 16, (1, 2), 1, 1, attention=(), middle_attention=False, level_patch_size=2)
    with pytest.raises(ValueError, match="refresh must be 1 for UNet, which has no KV cache, got 4"):
        AsyncDiffusion(network, sampler=Sampler(refresh=4), image_size=8)


def test_network_without_kv_cache_is_rejected():
    with pytest.raises(ValueError, match="refresh must be 1 for GaussianOracle, which has no KV cache, got 2"):
        run(Sampler(steps=1, refresh=2), GAUSSIAN, [0])
