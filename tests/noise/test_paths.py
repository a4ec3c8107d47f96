"""Laws of noise paths: monotone, from clean to noise, with slopes that are their derivatives."""

import math

import pytest
import torch
from noise.laws import grid_name, rebuilt, refusals
from scipy import stats

from asyncdiff.noise.fields import BlockwiseField, PerlinField
from asyncdiff.noise.orders import CenterOut, CustomOrder, Raster, Shuffled, Snake, Spiral, Wavefront
from asyncdiff.noise.paths import (
    AsyncPatch,
    Conditioned,
    Floored,
    Ordered,
    PartiallyNoised,
    Path,
    Synchronous,
    Waypoints,
    check_path,
)
from asyncdiff.randomness import per_image, seeded

DTYPES = [torch.float32, torch.float64]
MAPS = [[[0, 0.6], [0.9, 0.2]], [[0.5, 0.6], [1, 0.2]]]
KNOWN = torch.zeros(1, 4, 4, dtype=torch.bool)
KNOWN[0, :, :2] = True
ANY_GRID = {  # paths that work on every grid
    "synchronous": Synchronous(),
    "async": AsyncPatch(),
    "spread 0.3": AsyncPatch(spread=0.3),
    "perlin": AsyncPatch(field=PerlinField()),
    "blockwise": AsyncPatch(field=BlockwiseField()),
    "raster": Ordered(Raster()),
    "snake": Ordered(Snake(), overlap=0.1),
    "spiral": Ordered(Spiral(), overlap=0.5),
    "center": Ordered(CenterOut(), overlap=0.9),
    "wavefront": Ordered(Wavefront(), overlap=0.99),
    "shuffled": Ordered(Shuffled(together=2), overlap=0.3),
    "one map": Waypoints([[[0.3]]]),
    "floored": Floored(AsyncPatch(), t_min=0.01),
    "floored order": Floored(Ordered(Raster(), overlap=0.2), t_min=0.3),
}
PATHS = ANY_GRID | {
    "given": Ordered(CustomOrder([[0, 1], [2, 0]]), overlap=0.4),
    "waypoints": Waypoints(MAPS, progress=[0.2, 0.71]),
    "conditioned": Conditioned(AsyncPatch(), KNOWN),
    "conditioned order": Conditioned(Floored(Ordered(Raster()), t_min=0.2), KNOWN),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def moving(path: Path) -> torch.Tensor:
    """Patches of a 4x4 grid that do not stay clean."""
    return ~KNOWN[0] if isinstance(path, Conditioned) else torch.ones(4, 4, dtype=torch.bool)


def at(path: Path, grid: tuple[int, int], s: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and slopes (n, gh, gw) of one curve at every s (n,), in the type of s."""
    return path.draw(1, grid, generator=seeded(seed), dtype=s.dtype)(s)


def evaluate(path: Path, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and slopes (n, 8, 4, 4) of eight curves on 4x4 patches."""
    t, slope = zip(*(at(path, (4, 4), s, seed) for seed in range(8)), strict=True)
    return torch.stack(t, 1), torch.stack(slope, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_path
def test_paths_rise_from_clean_to_noise(path, dtype):
    s = torch.cat([torch.linspace(0, 1, 201), torch.rand(500, generator=seeded(1))]).sort().values.to(dtype)
    t, slope = evaluate(path, s)
    assert t.dtype == slope.dtype == dtype
    assert (t.diff(dim=0) >= 0).all()
    assert (slope >= 0).all()
    still = ~moving(path)
    assert (t[:, :, still] == 0).all()
    assert (slope[:, :, still] == 0).all()
    t = t[:, :, ~still]
    lowest = torch.tensor(path.t_min, dtype=dtype)
    assert (t[0] == lowest).all()
    assert (t[-1] == 1).all()
    assert ((t >= lowest) & (t <= 1)).all()


@every_path
def test_slopes_are_finite_differences(path):
    h, s = 1e-7, torch.tensor([0.1, 0.37, 0.63, 0.9], dtype=torch.float64)  # off the kink at 1/2
    above, below = (evaluate(path, s + d)[0] for d in (h, -h))
    assert torch.allclose((above - below) / (2 * h), evaluate(path, s)[1], atol=1e-6)


@every_path
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_at_many_points_are_those_of_each_point(path, dtype):
    curve, points = path.draw(3, (4, 4), generator=seeded(0), dtype=dtype), torch.rand(5, 2, 3, dtype=dtype)
    levels = curve.levels(points)
    for i in range(5):
        for j in range(2):
            assert torch.equal(levels[i, j], curve(points[i, j])[0])


@pytest.mark.parametrize("inference", [False, True])
def test_curves_see_that_a_tensor_was_changed_in_place(inference):
    with torch.inference_mode(inference):
        curve, s = AsyncPatch().draw(2, (2, 2), generator=seeded(0)), torch.full((2,), 0.2)
        first = [x.clone() for x in curve(s)]
        assert curve(s)[0] is curve(s)[0] or inference
        curve(s)[0].zero_()  # by a caller
        assert all(torch.equal(a, b) for a, b in zip(first, curve(s), strict=True))
        s.fill_(0.9)
        assert all(torch.equal(a, b) for a, b in zip(curve(s.clone()), curve(s), strict=True))


@every_path
def test_curve_of_an_image_depends_only_on_its_seed(path):
    s = torch.tensor([0.3, 0.3, 0.3])
    together = path.draw(3, (4, 4), generator=per_image([5, 6, 7]))(s)
    again = path if isinstance(path, Conditioned) else rebuilt(path)  # masks are not arguments of configurations
    alone = again.draw(1, (4, 4), generator=per_image([6]))(s[:1])
    for many, one in zip(together, alone, strict=True):
        assert torch.equal(many[1:2], one)


def test_spread_0_equals_synchronous():
    s = torch.rand(8)
    t, slope = AsyncPatch(spread=0.0).draw(8, (4, 4))(s)
    assert torch.equal(t, Synchronous().draw(8, (4, 4))(s)[0])
    assert (slope == 1).all()


def test_uniform_progress_gives_the_level_distribution_of_the_paper():
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


UNFLOORED = {name: path for name, path in ANY_GRID.items() if path.t_min == 0}


@pytest.mark.parametrize("path", UNFLOORED.values(), ids=UNFLOORED)
def test_floors_and_start_levels_rescale_levels_and_slopes(path):
    s = torch.rand(8, generator=seeded(1), dtype=torch.float64)
    levels = torch.rand(8, 4, 4, generator=seeded(2), dtype=torch.float64)
    paths = (path, Floored(path, t_min=0.2), PartiallyNoised(path, levels))
    plain, floored, partial = (p.draw(8, (4, 4), generator=seeded(0), dtype=torch.float64)(s) for p in paths)
    assert torch.allclose(floored[0], 0.2 + 0.8 * plain[0], rtol=0, atol=1e-15)
    assert torch.allclose(floored[1], 0.8 * plain[1], rtol=1e-15)
    assert torch.equal(partial[0], levels * plain[0])
    assert torch.equal(partial[1], levels * plain[1])


# Ordered

AWKWARD = [(1, 1), (1, 2), (1, 3), (7, 7), (8, 8), (15, 15)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("grid", AWKWARD, ids=grid_name)
def test_ordered_levels_run_from_0_to_1(grid, overlap, dtype):
    """c_k = s (1 + (K - 1)(1 - overlap)) - (1 - overlap)(K - 1 - k) up to rounding, never falling, with exact ends.

    So 1 / (1 - overlap) groups move at a time, a single group is synchronous, and so is overlap 1.
    """
    groups, lag = grid[0] * grid[1], 1 - overlap
    s = torch.cat([torch.rand(500, generator=seeded(1)), torch.arange(groups + 1) / groups]).sort().values.to(dtype)
    t, slope = at(Ordered(Raster(), overlap), grid, s)
    speed, rank = 1 + (groups - 1) * lag, torch.arange(groups, dtype=torch.float64)
    clock = (s.double()[:, None] * speed - lag * (groups - 1 - rank)).clamp(0, 1)
    assert (t.flatten(1) - clock).abs().max() <= 6 * speed * torch.finfo(dtype).eps  # groups pause for 4 of them
    assert (t.diff(dim=0) >= 0).all()
    assert (t[0] == 0).all()
    assert (t[-1] == 1).all()
    assert ((slope == 0) == ((t == 0) | (t == 1))).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", [*AWKWARD, (16, 16), (32, 32)], ids=grid_name)
def test_strict_order_finishes_one_group_at_a_time(grid, dtype):
    """At s = j/K, however it was rounded, exactly j groups are noise and the others are clean, bit for bit."""
    groups = grid[0] * grid[1]
    j = torch.arange(groups + 1)
    expected = torch.arange(groups) >= groups - j[:, None]  # the first to be generated is the last to be noised
    rounded = [
        j.to(dtype) / groups,
        torch.linspace(0, 1, groups + 1, dtype=dtype),
        torch.linspace(1, 0, groups + 1, dtype=torch.float64).flip(0).to(dtype),  # as samplers do
        (j.to(dtype) * (1 / groups)).clamp(max=1),
    ]
    for s in rounded:
        t, slope = at(Ordered(Raster()), grid, s)
        assert torch.equal(t.flatten(1), expected.to(dtype))
        assert (slope == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ordered_levels_do_not_jump_under_rounding(dtype):
    """From one floating-point s to the next a level rises by its slope times that; a jump at t = 0 would cost nats."""
    groups, eps = 225, torch.finfo(dtype).eps
    turns = torch.tensor([60, 112, 200], dtype=torch.float64) / groups
    for turn in turns.to(dtype):
        s = turn + torch.arange(-200, 200, dtype=dtype) * eps / 2  # all numbers around the end of a turn
        t = at(Ordered(Raster()), (15, 15), s)[0]
        assert (t.diff(dim=0) > 0).any()
        assert t.diff(dim=0).max() <= 2 * groups * eps  # one for the step, one for the rounding of s K


# Waypoints


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("progress", [None, [0.2, 0.71]], ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_path_is_linear_between_waypoints(blocks, progress, dtype):
    """Coarse maps are repeated over blocks of patches."""
    stops = torch.tensor([0, *(progress or [1 / 3, 2 / 3]), 1], dtype=dtype)
    maps = torch.tensor([[[0, 0], [0, 0]], *MAPS, [[1, 1], [1, 1]]], dtype=dtype).repeat_interleave(blocks, 2)
    path, grid = Waypoints(MAPS, progress), (2, 2 * blocks)
    assert torch.equal(at(path, grid, stops)[0], maps)
    t, slope = at(path, grid, (stops[1:] + stops[:-1]) / 2)
    few = 8 * torch.finfo(dtype).eps
    assert torch.allclose(t, (maps[1:] + maps[:-1]) / 2, rtol=few, atol=few)
    assert torch.allclose(slope, maps.diff(dim=0) / stops.diff()[:, None, None], rtol=few, atol=few)


# Paths of users


@every_path
def test_all_paths_pass_the_check(path):
    for grid in ((4, 4), (1, 1), (3, 5)) if path in ANY_GRID.values() else ((4, 4),):
        check_path(path, grid)


class Bent(Path):
    """Custom path: synchronous except for the patch in row 1, column 0, which follows a rule (s -> t, dt/ds)."""

    def __init__(self, rule, t_min: float = 0.0):
        self.rule = rule
        self.t_min = t_min

    def curve(self, source):
        def curve(s):
            t = (self.t_min + (1 - self.t_min) * s)[:, None, None].repeat(1, *source.grid)
            slope = torch.full_like(t, 1 - self.t_min)
            t[:, 1, 0], slope[:, 1, 0] = self.rule(s)
            return t, slope

        return curve


WAVE = 2 * math.pi
ENDS = r"must go from t = 0.0 to 1, got t = %s at s = %s in row 1, column 0"
SLOPES = r"must return the derivatives of its levels as slopes, got a wrong .* in row 1, column 0"
FAULTS = {
    "falls": (lambda s: (s + 0.3 * (WAVE * s).sin(), 1 + 0.3 * WAVE * (WAVE * s).cos()), "never fall.*row 1, column 0"),
    "does not reach 1": (lambda s: (0.9 * s, torch.full_like(s, 0.9)), ENDS % ("0.9", 1)),
    "starts above 0": (lambda s: (0.1 + 0.9 * s, torch.full_like(s, 0.9)), ENDS % ("0.1", 0)),
    "constant": (lambda s: (torch.full_like(s, 0.5), torch.zeros_like(s)), ENDS % ("0.5", 0)),
    "is noise from the start": (lambda s: (torch.ones_like(s), torch.zeros_like(s)), ENDS % ("1", 0)),
    "leaves the range": (lambda s: (1.5 * s, torch.full_like(s, 1.5)), r"levels in \[0, 1\].* in row 1, column 0"),
    "is nan": (lambda s: (s * math.nan, torch.ones_like(s)), r"levels in \[0, 1\], got nan .* in row 1, column 0"),
    "jumps": (lambda s: ((s > 0.437).to(s), 0 * s), "be continuous, got a jump of .* at s = 0.437 in row 1, column 0"),
    "has another's slope": (lambda s: (s**2, torch.ones_like(s)), SLOPES),
    "misses a factor": (lambda s: (s**2, s), SLOPES),
    "has no slope": (lambda s: (s, torch.zeros_like(s)), SLOPES),
}


@pytest.mark.parametrize(("rule", "message"), FAULTS.values(), ids=FAULTS)
def test_invalid_paths_are_refused_with_the_patch(rule, message):
    with pytest.raises(ValueError, match=f"Bent.* {message}"):
        check_path(Bent(rule), (2, 3))


def test_valid_paths_are_accepted():
    check_path(Bent(lambda s: (s**2, 2 * s)), (2, 3))
    check_path(Bent(lambda s: (0 * s, 0 * s)), (2, 3))  # stays clean
    check_path(Bent(lambda s: (0.1 + 0.9 * s**3, 2.7 * s**2), t_min=0.1), (2, 3))
    check_path(Bent(lambda s: ((s > 0.3) * (s - 0.3) / 0.7, (s > 0.3) / 0.7)), (2, 3))  # a kink is fine


PROGRESS = "one s per map, increasing in (0, 1), got"
SIZES = "grids of the same size, got sizes (rows, row lengths)"
BELOW = Bent(lambda s: (s, torch.ones_like(s)), t_min=0.1)
FLOORED, SYNC, ONES = Floored(AsyncPatch(), 0.1), Synchronous(), torch.ones(1, 4, 4)
test_invalid_arguments_are_refused = refusals(
    {
        "spread must lie in [0, 1], or levels would leave [0, 1], got -0.1": lambda: AsyncPatch(spread=-0.1),
        "spread must lie in [0, 1], or levels would leave [0, 1], got 1.1": lambda: AsyncPatch(spread=1.1),
        "overlap must lie in [0, 1), got -0.1": lambda: Ordered(Raster(), -0.1),
        "overlap must lie in [0, 1), got 1.0": lambda: Ordered(Raster(), 1.0),
        "start at t = 0, got one with a floor of 0.1: apply Floored only once": lambda: Floored(FLOORED, 0.2),
        "path must not be Conditioned": lambda: Floored(Conditioned(SYNC, KNOWN)),
        "t_min must lie in (0, 1), got 1.0": lambda: Floored(SYNC, 1.0),
        "t_min must be at least 1e-12, got 1e-13": lambda: Floored(SYNC, 1e-13),
        "start at t = 0, got one with a floor of 0.1: remove Floored": lambda: PartiallyNoised(FLOORED, ONES),
        "levels needs a single map or one per image": lambda: PartiallyNoised(SYNC, ONES).draw(1, (2, 2)),
        "fall, got t = 0.5 at s = 0.333333 and 0 at s = 0.666667 in row 0, column 0": lambda: Waypoints(MAPS[::-1]),
        "levels in [0, 1], got 1.5 at s = 0.5 in row 0, column 1": lambda: Waypoints([[[0.2, 1.5]]]),
        "levels in [0, 1], got -0.1 at s = 0.5 in row 1, column 0": lambda: Waypoints([[[0.2], [-0.1]]]),
        "levels in [0, 1], got nan at s = 0.5 in row 0, column 1": lambda: Waypoints([[[0.2, math.nan]]]),
        f"{SIZES} [(2, {{1, 2}})]": lambda: Waypoints([[[0.2, 0.3], [0.4]]]),
        f"{SIZES} [(1, {{1}}), (1, {{2}})]": lambda: Waypoints([[[0.2]], [[0.3, 0.3]]]),
        f"{SIZES} []": lambda: Waypoints([]),
        f"{SIZES} [(1, {{0}})]": lambda: Waypoints([[[]]]),
        f"{PROGRESS} [0.5] for 2 maps": lambda: Waypoints(MAPS, [0.5]),
        f"{PROGRESS} [0.5, 0.5]": lambda: Waypoints(MAPS, [0.5, 0.5]),
        f"{PROGRESS} [0.0, 0.5]": lambda: Waypoints(MAPS, [0.0, 0.5]),
        f"{PROGRESS} [0.5, 1.0]": lambda: Waypoints(MAPS, [0.5, 1.0]),
        f"{PROGRESS} [0.5, nan]": lambda: Waypoints(MAPS, [0.5, math.nan]),
        "maps has 2x2 values, which do not divide the level map of 3x4": lambda: Waypoints(MAPS).draw(1, (3, 4)),
        "from t = 0.1 to 1, got t = 0 at s = 0 in row 1, column 0": lambda: check_path(BELOW, (2, 3)),
        "grid (2, 2), got (4, 4)": lambda: Conditioned(SYNC, KNOWN).draw(1, (2, 2)),
        "got 2 masks for 3 images": lambda: Conditioned(SYNC, KNOWN.expand(2, 4, 4)).draw(3, (4, 4)),
        "got 5 masks for 3 images": lambda: Conditioned(SYNC, KNOWN.expand(5, 4, 4)).draw(3, (4, 4)),
    }
)
