"""Laws of noise paths: monotone, from clean to noise, with slopes that are their derivatives."""

import math

import pytest
import torch
from scipy import stats

from asyncdiff.paths import AsyncPatch, Conditioned, Floored, Path, Synchronous
from asyncdiff.randomness import per_image, seeded

KNOWN = torch.zeros(1, 4, 4, dtype=torch.bool)
KNOWN[0, :, :2] = True
PATHS = [
    Synchronous(),
    AsyncPatch(),
    AsyncPatch(spread=0.3),
    Floored(AsyncPatch(), t_min=0.01),
    Conditioned(AsyncPatch(), KNOWN),
]


def walk(path: Path, batch: int = 16, points: int = 201, grid: tuple[int, int] = (4, 4)):
    curve = path.draw(batch, grid, generator=seeded(0), dtype=torch.float64)
    s = torch.linspace(0, 1, points, dtype=torch.float64)
    maps, slopes = zip(*(curve(point.expand(batch)) for point in s), strict=True)
    return s, torch.stack(maps), torch.stack(slopes), curve


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_paths_rise_from_clean_to_noise(path):
    _, t, slope, _ = walk(path)
    unknown = ~KNOWN.expand(16, 4, 4) if isinstance(path, Conditioned) else torch.ones(16, 4, 4, dtype=torch.bool)
    assert (t.diff(dim=0) >= 0).all()
    assert (slope >= 0).all()
    assert (t[0][unknown] == path.t_min).all()
    assert (t[-1][unknown] == 1).all()


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_slopes_are_finite_differences(path):
    _, _, _, curve = walk(path)
    h = 1e-7
    for s in (0.1, 0.37, 0.63, 0.9):  # off the kink at 1/2
        above, below = (curve(torch.full((16,), s + d, dtype=torch.float64))[0] for d in (h, -h))
        slope = curve(torch.full((16,), s, dtype=torch.float64))[1]
        assert torch.allclose((above - below) / (2 * h), slope, atol=1e-6)


def test_no_spread_is_synchronous():
    s = torch.rand(8)
    t, slope = AsyncPatch(spread=0.0).draw(8, (4, 4))(s)
    assert torch.equal(t, Synchronous().draw(8, (4, 4))(s)[0])
    assert (slope == 1).all()


def cdf(t):
    """F(t) = t + ((1 - t) ln(1 - t) - t ln t) / 2, the marginal of one patch."""
    return t + 0.5 * ((1 - t) * torch.log1p(-t) - t * t.log())


def test_marginal_of_a_patch():
    n = 40_000
    s = torch.rand(n, generator=seeded(1), dtype=torch.float64)
    t, _ = AsyncPatch().draw(n, (1, 1), generator=seeded(2), dtype=torch.float64)(s)
    assert stats.kstest(t.flatten().numpy(), lambda q: cdf(torch.as_tensor(q)).numpy()).pvalue > 0.01
    assert t.mean().item() == pytest.approx(0.5, abs=4 * t.std().item() / math.sqrt(n))


@pytest.mark.parametrize("s", [0.2, 0.5, 0.8])
def test_spread_within_an_image_given_progress(s):
    half_width, patches, n = min(s, 1 - s), 16, 20_000
    t, _ = AsyncPatch().draw(n, (4, 4), generator=seeded(3), dtype=torch.float64)(torch.full((n,), s).double())
    assert t.std().item() == pytest.approx(half_width / math.sqrt(3), rel=0.01)
    assert t.mean((1, 2)).std().item() == pytest.approx(half_width / math.sqrt(3 * patches), rel=0.02)


def test_the_paper_s_sampler_is_this_path_at_uniform_progress():
    """t_bar ~ U(0, 1), delta = min(t_bar, 1 - t_bar, 1/2), t_i ~ U(t_bar - delta, t_bar + delta)."""
    n = 20_000
    rng = torch.Generator().manual_seed(4)
    t_bar = torch.rand(n, 1, generator=rng, dtype=torch.float64)
    delta = torch.minimum(t_bar, 1 - t_bar).clamp(max=0.5)
    theirs = t_bar - delta + 2 * delta * torch.rand(n, 2, generator=rng, dtype=torch.float64)
    s = torch.rand(n, generator=rng, dtype=torch.float64)
    ours = AsyncPatch().draw(n, (1, 2), generator=rng, dtype=torch.float64)(s)[0][:, 0]
    for statistic in (lambda t: t[:, 0], lambda t: t.mean(1), lambda t: t[:, 0] - t[:, 1]):
        assert stats.ks_2samp(statistic(theirs).numpy(), statistic(ours).numpy()).pvalue > 0.01


def test_known_patches_stay_clean():
    _, t, slope, _ = walk(Conditioned(Synchronous(), KNOWN))
    assert (t[:, :, :, :2] == 0).all()
    assert (slope[:, :, :, :2] == 0).all()


def test_an_image_s_path_depends_on_its_seed_only():
    s = torch.tensor([0.3, 0.3, 0.3])
    together = AsyncPatch().draw(3, (4, 4), generator=per_image([5, 6, 7]))(s)[0]
    alone = AsyncPatch().draw(1, (4, 4), generator=per_image([6]))(s[:1])[0]
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("spread", [-0.1, 1.1])
def test_spread_out_of_range_is_refused(spread):
    with pytest.raises(ValueError, match=f"spread must lie in .*got {spread}"):
        AsyncPatch(spread=spread)


def test_a_mask_on_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"grid \(2, 2\), got \(4, 4\)"):
        Conditioned(Synchronous(), KNOWN).draw(1, (2, 2))


def test_a_floor_under_known_patches_is_refused():
    with pytest.raises(ValueError, match="Conditioned"):
        Floored(Conditioned(Synchronous(), KNOWN))
