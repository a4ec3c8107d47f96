"""Guidance: neutral settings change nothing, the formulas hold, all branches are one batch."""

import pytest
import torch

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.oracles import MixtureOracle, random_mixture
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import RandomSource, per_image, seeded
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.solvers import DDIM, Multistep

SHAPE = (1, 8, 8)
DOUBLE = {"shape": SHAPE, "dtype": torch.float64}


class Counted(Denoiser):
    """A denoiser that records the sizes of its batches."""

    def __init__(self, network):
        super().__init__(network, RectifiedFlow())
        self.batches = []

    def forward(self, x_t, t, label=None, *, unique=None, kv_cache=None):
        self.batches.append(len(x_t))
        return super().forward(x_t, t, label, unique=unique, kv_cache=kv_cache)


@pytest.fixture
def denoiser(small_dit):
    return Counted(small_dit)


def guide(guidances, denoiser, batch, grid=(4, 4)):
    for guidance in guidances:
        source = RandomSource(batch, grid, per_image(range(batch)), "cpu", torch.float64)
        denoiser = guidance.begin(denoiser, source, SHAPE)
    return denoiser


def inputs(batch=3):
    x_t = torch.randn(batch, *SHAPE, generator=seeded(0), dtype=torch.float64)
    t = torch.rand(batch, 4, 4, generator=seeded(1), dtype=torch.float64)
    t[:, :, :2] = 0
    return x_t, t, torch.arange(batch)


@torch.no_grad()
def test_scale_1_and_strength_0_are_the_unguided_denoiser_exactly(denoiser):
    assert guide([ClassifierFree(1), InputGuidance(0)], denoiser, 3) is denoiser
    options = {"seeds": [1, 2], "label": torch.tensor([3, 4]), **DOUBLE}
    image, known = torch.rand(2, *SHAPE, dtype=torch.float64), torch.zeros(2, 8, 8, dtype=torch.bool)
    known[:, :4] = True
    for solver in (DDIM(0.25), Multistep()):
        plain = Sampler(AsyncPatch(), solver, 4)(denoiser, image=image, known=known, **options)
        guidance = [ClassifierFree(1.0), InputGuidance(0.0)]
        off = Sampler(AsyncPatch(), solver, 4, guidance)(denoiser, image=image, known=known, **options)
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
    oracle = MixtureOracle(*random_mixture(3, 16), (2, 2))
    x_t = torch.randn(2, 1, 4, 4, generator=seeded(0), dtype=torch.float64)
    t = torch.full((2, 2, 2), 0.4, dtype=torch.float64)
    label = torch.tensor([0, 2])
    source = RandomSource(2, (2, 2), per_image([0, 1]), "cpu", torch.float64)
    guided = ClassifierFree(2.5).begin(oracle, source, (1, 4, 4))(x_t, t, label)
    process = oracle.process
    score_c, score_u, score = (
        process.score_from_v(x_t, prediction.v, t) for prediction in (oracle(x_t, t, label), oracle(x_t, t), guided)
    )
    assert torch.allclose(score, score_u + 2.5 * (score_c - score_u), rtol=0, atol=1e-10)


@torch.no_grad()
def test_input_guidance_matches_the_formula(denoiser):
    x_t, t, label = inputs()
    source = RandomSource(3, (4, 4), per_image(range(3)), "cpu", torch.float64)
    guided = InputGuidance(1.5, level=0.6).begin(denoiser, source, SHAPE)(x_t, t, label).v
    noise = RandomSource(3, (4, 4), per_image(range(3)), "cpu", torch.float64).normal(*SHAPE)
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:, :4] = True
    x_noisy = torch.where(known, 0.4 * x_t + 0.6 * noise, x_t)
    t_noisy = t.clone()
    t_noisy[:, :, :2] = 0.6
    clean, noisy = denoiser(x_t, t, label).v, denoiser(x_noisy, t_noisy, label).v
    assert torch.allclose(guided, torch.where(known, clean, clean + 1.5 * (clean - noisy)), rtol=0, atol=1e-12)


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
    plain = Sampler(AsyncPatch(), DDIM(0.25), 3)(denoiser, seeds=[0, 1], **DOUBLE)
    guided = Sampler(AsyncPatch(), DDIM(0.25), 3, [ClassifierFree(3)])(denoiser, seeds=[0, 1], **DOUBLE)
    assert torch.equal(plain, guided)


@pytest.mark.parametrize("sampler", [Sampler, Autoregressive])
def test_image_i_depends_only_on_seed_i(denoiser, sampler):
    options = {"steps": 6} if sampler is Sampler else {"steps_per_patch": 1}
    guided = sampler(solver=DDIM(0.25), guidance=[ClassifierFree(2, high=0.8), InputGuidance(1)], **options)
    image = torch.rand(3, *SHAPE, generator=seeded(0), dtype=torch.float64)
    known = torch.zeros(3, 8, 8, dtype=torch.bool)
    known[:2, :, :4] = True  # nothing is known of the third
    label = torch.tensor([0, 1, 2])
    together = guided(denoiser, seeds=[7, 8, 9], label=label, image=image, known=known, **DOUBLE)
    for i in range(3):
        part = slice(i, i + 1)
        alone = guided(denoiser, seeds=[7 + i], label=label[part], image=image[part], known=known[part], **DOUBLE)
        assert torch.allclose(together[part], alone, rtol=0, atol=1e-10)


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
        Sampler(steps=1)(denoiser, seeds=[0], label=torch.tensor([11]), **DOUBLE)
    with pytest.raises(
        ValueError, match="InputGuidance needs known patches at level 0, which RePaint has only with hold"
    ):
        RePaint(guidance=[InputGuidance(1)])
    with pytest.raises(ValueError, match="strength has .* values, which do not divide the level map"):
        Sampler(steps=1, guidance=[InputGuidance([[1, 2, 3]])])(denoiser, seeds=[0], **DOUBLE)
