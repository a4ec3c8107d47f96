"""Guidance: neutral settings change nothing, the formulas hold, all branches are one batch."""

import pytest
import torch
from sampling_setup import MIXTURE, frames, random_images, run

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.noise.masks import Half
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import RandomSource, per_image, seeded
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM, Multistep
from asyncdiff.shapes import indexed

SHAPE = (1, 8, 8)


class Counted(Denoiser):
    """A denoiser that records the sizes of its batches."""

    def __init__(self, network):
        super().__init__(network, RectifiedFlow())
        self.batches = []

    def forward(self, x_t, t, label=None, *, kv_cache=None):
        self.batches.append(len(x_t))
        return super().forward(x_t, t, label, kv_cache=kv_cache)


@pytest.fixture
def denoiser(small_dit):
    return Counted(small_dit)


def guide(guidances, denoiser, batch, grid=(4, 4)):
    for guidance in guidances:
        source = RandomSource(batch, grid, per_image(range(batch)), "cpu", torch.float64)
        denoiser = guidance.begin(denoiser, source, SHAPE)
    return denoiser


def inputs(batch=3):
    t = torch.rand(batch, 4, 4, generator=seeded(1), dtype=torch.float64)
    t[:, :, :2] = 0
    return random_images(batch, SHAPE), t, torch.arange(batch)


@torch.no_grad()
def test_scale_1_and_strength_0_are_the_unguided_denoiser_exactly(denoiser):
    assert guide([ClassifierFree(1), InputGuidance(0)], denoiser, 3) is denoiser
    request = {
        "label": torch.tensor([3, 4]),
        "image": random_images(2, SHAPE),
        "known": Half("top")(8, 8).expand(2, 8, 8),
    }
    for solver in (DDIM(0.25), Multistep()):
        plain, off = (
            run(Sampler(AsyncPatch(), solver, 4, rules), denoiser, [1, 2], SHAPE, **request)
            for rules in ([], [ClassifierFree(1.0), InputGuidance(0.0)])
        )
        assert torch.equal(plain, off)


@torch.no_grad()
def test_strength_map_guides_only_where_it_is_not_0(denoiser):
    x_t, t, label = inputs()
    rows = [[0, 0, 0, 1], [0, 0, 0, 0]]
    plain = denoiser(x_t, t, label).v
    guided = guide([InputGuidance(rows)], denoiser, 3)(x_t, t, label).v
    # One row of numbers stands for two rows of patches, a patch is 2x2 pixels.
    assert (guided[..., :4, 6:] != plain[..., :4, 6:]).all()
    guided[..., :4, 6:] = plain[..., :4, 6:]
    assert torch.allclose(guided, plain, rtol=0, atol=1e-12)


@torch.no_grad()
def test_label_guidance_matches_the_formula_within_its_interval(denoiser):
    x_t, t, label = inputs()
    with_label, without = denoiser(x_t, t, label).v, denoiser(x_t, t, None).v
    guided = guide([ClassifierFree(3.0, 0.25, 0.75)], denoiser, 3)(x_t, t, label).v
    inside = ((t >= 0.25) & (t <= 0.75)).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    assert 0.1 < inside.double().mean() < 0.9
    expected = torch.where(inside, without + 3 * (with_label - without), with_label)
    assert torch.allclose(guided, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_label_guidance_matches_the_guided_score_of_a_mixture():
    """score_u + w (score_c - score_u), the definition of classifier-free guidance, on a known density."""
    x_t, t, label = random_images(2), torch.full((2, 2, 2), 0.4, dtype=torch.float64), torch.tensor([0, 2])
    guided = guide([ClassifierFree(2.5)], MIXTURE, 2, (2, 2))(x_t, t, label)
    score_c, score_u, score = (
        MIXTURE.process.score_from_v(x_t, prediction.v, t)
        for prediction in (MIXTURE(x_t, t, label), MIXTURE(x_t, t), guided)
    )
    assert torch.allclose(score, score_u + 2.5 * (score_c - score_u), rtol=0, atol=1e-10)


@torch.no_grad()
def test_input_guidance_matches_the_formula(denoiser):
    x_t, t, label = inputs()
    guided = guide([InputGuidance(1.5, level=0.6)], denoiser, 3)(x_t, t, label).v
    noise = RandomSource(3, (4, 4), per_image(range(3)), "cpu", torch.float64).normal(*SHAPE)
    known = Half("left")(8, 8)
    x_noisy = torch.where(known, 0.4 * x_t + 0.6 * noise, x_t)
    t_noisy = t.clone()
    t_noisy[:, :, :2] = 0.6
    clean, noisy = denoiser(x_t, t, label).v, denoiser(x_noisy, t_noisy, label).v
    assert torch.allclose(guided, torch.where(known, clean, clean + 1.5 * (clean - noisy)), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("rule", [ClassifierFree(3.0), InputGuidance(1.0)])
def test_known_distinct_levels_change_nothing(denoiser, rule):
    x_t, t, label = inputs()
    guided = guide([rule], denoiser, 3)
    assert torch.equal(guided(x_t, indexed(t), label).v, guided(x_t, t, label).v)


@torch.no_grad()
def test_nested_guidance_uses_one_batch_in_any_order(denoiser):
    x_t, t, label = inputs()
    rules = [ClassifierFree(3.0), InputGuidance(1.0)]
    one = guide(rules, denoiser, 3)(x_t, t, label).v
    assert denoiser.batches == [12]
    other = guide(rules[::-1], denoiser, 3)(x_t, t, label).v
    assert torch.allclose(one, other, rtol=0, atol=1e-10)


@torch.no_grad()
def test_input_guidance_needs_known_patches(denoiser):
    x_t, t, label = inputs()
    guided = guide([InputGuidance(2.0)], denoiser, 3)
    t[1:] = 0.5
    assert torch.allclose(guided(x_t, t, label).v[1:], denoiser(x_t, t, label).v[1:], rtol=0, atol=1e-12)
    assert not torch.allclose(guided(x_t, t, label).v[0], denoiser(x_t, t, label).v[0], rtol=0, atol=1e-3)
    denoiser.batches.clear()
    guided(x_t[1:], t[1:], label[1:])
    assert denoiser.batches == [2]


@torch.no_grad()
def test_without_labels_classifier_free_guidance_does_nothing(denoiser):
    """v_cond equals v_uncond: a sampler with classifier-free guidance can inpaint photos without labels."""
    plain, guided = (
        run(Sampler(AsyncPatch(), DDIM(0.25), 3, rules), denoiser, [0, 1], SHAPE) for rules in ([], [ClassifierFree(3)])
    )
    assert torch.equal(plain, guided)


def test_guidance_noise_differs_between_images_and_from_their_initial_noise(denoiser):
    drawn = []

    class Drawing(InputGuidance):
        def begin(self, denoiser, source, shape):
            drawn.append(source.normal(*shape))
            return denoiser

    start = frames(Sampler(steps=1, guidance=[Drawing(1.0)]), denoiser, [7, 8], SHAPE)[0].x_t
    noise = [*drawn[0], *start]
    assert len({float(image.sum()) for image in noise}) == 4
    frames(Sampler(steps=1, guidance=[Drawing(1.0)]), denoiser, [8], SHAPE)
    assert torch.equal(drawn[1][0], drawn[0][1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClassifierFree(-1), "scale must be at least 0, got -1"),
        (lambda: ClassifierFree(2, 0.6, 0.4), "high must lie in"),
        (lambda: ClassifierFree(float("nan")), "scale must be at least 0, got nan"),
        (lambda: InputGuidance(-0.5), "strength must be at least 0, got -0.5"),
        (lambda: InputGuidance([[1, 2], [1]]), "strength must be a number or rows of equal length"),
        (lambda: InputGuidance(1, level=0), "level must lie in"),
    ],
)
def test_invalid_arguments_are_rejected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@torch.no_grad()
def test_sampling_rejects_what_cannot_be_guided(denoiser):
    with pytest.raises(ValueError, match="label must lie in 0 .. 9, or be 10 for no label, got 11"):
        run(Sampler(steps=1), denoiser, [0], SHAPE, label=torch.tensor([11]))
    with pytest.raises(
        ValueError, match="InputGuidance needs known patches at level 0, which RePaint has only with hold"
    ):
        RePaint(guidance=[InputGuidance(1)])
    with pytest.raises(ValueError, match="strength has .* values, which do not divide the level map"):
        run(Sampler(steps=1, guidance=[InputGuidance([[1, 2, 3]])]), denoiser, [0], SHAPE)
