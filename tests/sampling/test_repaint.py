"""RePaint: its schedule is that of the paper, known pixels stay, and jumps restore the right amount of noise."""

from itertools import pairwise

import pytest
import torch
from sampling_setup import GAUSSIAN, MEAN, SHAPE, conditional, frames, random_images, run

from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.sampling.repaint import RePaint


def known_left(images: int) -> torch.Tensor:
    return (torch.arange(4) < 2).expand(images, 4, 4).clone()


def test_the_default_schedule_has_2410_evaluations():
    """Lugmayr et al. with 250 steps, jumps of 10 and 10 resamples."""
    steps = [250, *RePaint().schedule()]
    assert sum(b < a for a, b in pairwise(steps)) == 2410
    assert {a - b for a, b in pairwise(steps)} == {1, -10}
    assert steps[-1] == 0
    assert min(steps[:-1]) == 1  # a jump never starts from the clean image
    assert max(steps) == 250


def test_schedule_without_resampling_never_jumps_back():
    assert list(RePaint(steps=7, resamples=1).schedule()) == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP(), LinearVP()])
def test_noise_added_in_two_parts_equals_noise_added_at_once(process):
    """diffused(x_t) has the mean and the variance of q(x_to | x)."""
    b = 100_000
    x = torch.full((b, 1, 1, 1), 0.8, dtype=torch.float64)
    eps = torch.randn(2, b, 1, 1, 1, generator=seeded(0), dtype=torch.float64)
    low, high = (torch.full((b, 1, 1), level, dtype=torch.float64) for level in (0.3, 0.7))
    x_t = process.diffused(process.noised(x, eps[0], low), eps[1], low, high)
    assert float(x_t.mean()) == pytest.approx(float(0.8 * process.alpha(high[0, 0, 0])), abs=4 / b**0.5)
    assert float(x_t.std()) == pytest.approx(float(process.sigma(high[0, 0, 0])), rel=4 / (2 * b) ** 0.5)


def test_patches_at_their_level_are_not_diffused():
    x_t, eps = torch.randn(2, 3, *SHAPE, generator=seeded(0))
    t = torch.rand(3, 2, 2, generator=seeded(1)).masked_fill(torch.tensor([[True, False], [False, False]]), 0)
    assert torch.equal(RectifiedFlow().diffused(x_t, eps, t, t), x_t)
    assert torch.isfinite(RectifiedFlow().diffused(x_t, eps, t, torch.ones_like(t))).all()


def test_resampling_brings_the_unknown_part_to_its_conditional():
    """E[unknown | known] of a Gaussian: with resampling the error of the mean falls, as the paper argues."""
    image, known, n = MEAN.reshape(1, *SHAPE) + 2, known_left(600), 600
    expected, _ = conditional(image, known[0])
    errors = []
    for resamples in (1, 8):
        sampler = RePaint(steps=20, jump=5, resamples=resamples)
        out = run(sampler, GAUSSIAN, range(n), image=image.expand(n, *SHAPE), known=known)
        errors.append(float((out.flatten(1)[:, ~known[0].flatten()].mean(0) - expected).norm()))
    assert errors[1] < 0.5 * errors[0]


def test_known_pixels_are_replaced_by_the_image_with_fresh_noise():
    """In every frame they have the distribution of their level, and their noise is new."""
    image, known, n = random_images(1), known_left(500), 500
    walk = frames(RePaint(steps=4, jump=2, resamples=2), GAUSSIAN, range(n), image=image.expand(n, *SHAPE), known=known)
    noise = [
        ((frame.x_t - (1 - frame.s) * image) / frame.s)[..., :2].flatten() for frame in walk[1:] if frame.s > 0
    ]  # jumps add noise to these pixels, too
    for eps in noise:
        assert abs(float(eps.mean())) < 4 / len(eps) ** 0.5
        assert float(eps.std()) == pytest.approx(1, abs=4 / (2 * len(eps)) ** 0.5)
    down = [eps for eps, before, after in zip(noise, walk, walk[1:], strict=False) if after.s < before.s]
    assert all(abs(float((a * b).mean())) < 4 / len(a) ** 0.5 for a, b in pairwise(down))


def test_hold_keeps_known_patches_clean_and_resamples_the_others():
    """With `hold`, fully known patches stay at level 0 in every frame; the others follow RePaint's schedule."""
    image, known = random_images(2), known_left(2)
    known[1], known[1, ::2] = False, True  # no patch of the second image is wholly known
    sampler, request = RePaint(steps=10, jump=3, resamples=2, hold=True), {"image": image, "known": known}
    walk = frames(sampler, GAUSSIAN, [0, 1], **request)
    for frame, step in zip(walk, [10, *sampler.schedule()], strict=True):
        assert torch.equal(frame.x_t[0, ..., :2], image[0, ..., :2])
        assert not frame.t[0, :, 0].any()
        assert torch.allclose(frame.t[1], torch.full((2, 2), step / 10, dtype=torch.float64))
        assert torch.allclose(frame.t[0, :, 1], frame.t[1, :, 1])
    free, held = (
        run(RePaint(steps=10, jump=3, resamples=2, hold=hold), GAUSSIAN, [0, 1], **request) for hold in (False, True)
    )
    assert torch.equal(free[1], held[1])  # nothing to hold
    assert not torch.equal(free[0], held[0])


def test_repaint_needs_known_pixels():
    with pytest.raises(ValueError, match="RePaint needs image and known, got neither"):
        run(RePaint(steps=2), GAUSSIAN)
