"""Tiling: known pixels stay, the batch size does not matter, and seams have the statistics of the texture."""

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from sampling_setup import network_denoiser
from torch.utils._python_dispatch import TorchDispatchMode

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.oracles import GaussianOracle
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import counter_key, normal, per_image, seeded
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import Heun
from asyncdiff.sampling.tiling import TiledSampler, TilingState, segments
from asyncdiff.sampling.trajectories import Frame

SHAPE = (1, 8, 8)
LENGTH = 2.0  # correlation length of the texture in pixels
LAG_1 = math.exp(-1 / LENGTH)


def texture(side: int = 8, patches: int = 4) -> GaussianOracle:
    """Windows of a stationary texture, covariance exp(-(|dx| + |dy|) / 2)."""
    at = torch.arange(side, dtype=torch.float64)
    line = torch.exp(-(at[:, None] - at).abs() / LENGTH)
    return GaussianOracle(torch.zeros(side**2, dtype=torch.float64), torch.kron(line, line), (patches, patches))


ORACLE = texture()


class Exact(ImageSampler):
    """Samples the unknown pixels of a Gaussian given the known ones, per channel; records the masks."""

    def __init__(self, cov: torch.Tensor | None = None):
        self.cov = ORACLE.cov if cov is None else cov
        self.masks: list[torch.Tensor] = []

    def walk(self, start):
        self.masks.append(start.known)
        rows = []
        for x, eps, known in zip(start.image.flatten(2), start.eps.flatten(2), start.known.flatten(1), strict=True):
            inside, across, outside = self.cov[known][:, known], self.cov[~known][:, known], self.cov[~known][:, ~known]
            weights = torch.linalg.solve(inside, across.mT).mT
            root = torch.linalg.cholesky(outside - weights @ across.mT)
            row = x.clone()
            row[:, ~known] = x[:, known] @ weights.mT + eps[:, ~known] @ root.mT
            rows.append(row)
        yield Frame(torch.stack(rows).reshape(start.x_t.shape), start.known_patches.to(start.x_t.dtype) * 0, 0.0)


def sample_canvas(
    canvas: TiledSampler, size: tuple[int, int], seed: int = 0, denoiser=ORACLE, **options
) -> torch.Tensor:
    return canvas(denoiser, size=size, shape=SHAPE, seed=seed, dtype=torch.float64, **options)


def states(canvas: TiledSampler, size: tuple[int, int], **options) -> Iterator[TilingState]:
    return canvas.steps(ORACLE, size=size, shape=SHAPE, seed=0, dtype=torch.float64, **options)


WINDOWS = [(4, 0), (4, 1), (4, 2), (4, 3), (5, 2), (8, 4), (8, 7)]  # with their overlaps


def sides(window: int) -> Iterator[tuple[int, float]]:
    """Lengths of a side, and desired centers of the first window."""
    for patches in (window, window + 1, 2 * window - 1, 3 * window, 41):
        for middle in (0.5, patches / 2, patches - 0.5):
            yield patches, middle


@pytest.mark.parametrize(
    ("window", "overlap", "tileable"), [(*w, False) for w in WINDOWS] + [(*w, True) for w in WINDOWS if w[1]]
)
def test_segments_cover_a_side_once_and_depend_only_on_earlier_ones(window, overlap, tileable):
    for patches, middle in sides(window):
        parts = segments(patches, window, overlap, middle=middle, tileable=tileable)
        owns = [[patch % patches for patch in range(s.first, s.first + s.length)] for s in parts]
        rank = {patch: s.rank for s, own in zip(parts, owns, strict=True) for patch in own}
        assert sorted(patch for own in owns for patch in own) == list(range(patches))
        for segment, own in zip(parts, owns, strict=True):
            view = {patch % patches for patch in range(segment.window, segment.window + window)}
            assert set(own) <= view
            known = [rank[patch] for patch in view - set(own)]
            if segment.rank:
                assert len(known) >= overlap
                assert max(known, default=-1) < segment.rank
        if not tileable:
            assert all(0 <= s.window <= patches - window for s in parts)
            assert len(parts) == 1 + math.ceil((patches - window) / (window - overlap))  # as few as can be


@pytest.mark.parametrize(("window", "overlap"), [w for w in WINDOWS if w[1]])
def test_closing_window_has_known_patches_on_both_sides(window, overlap):
    for patches, middle in sides(window):
        parts = segments(patches, window, overlap, middle=middle, tileable=True)
        last = max(parts, key=lambda segment: segment.rank)
        assert sum(segment.rank == last.rank for segment in parts) == 1
        before, after = last.first - last.window, last.window + window - last.first - last.length
        assert before >= 1
        assert 0 <= after - before <= 1
        assert before + after >= overlap


@pytest.mark.parametrize("middle", [2.5, 11.0, 20.0, 38.5])
def test_first_window_lies_at_the_desired_center(middle):
    """Within half a stride, unless it would stick out."""
    (first,) = [s for s in segments(41, 8, 4, middle=middle, tileable=False) if s.rank == 0]
    assert abs(first.window - min(max(middle - 4, 0), 33)) <= 2


def test_single_window_equals_the_wrapped_sampler():
    image = sample_canvas(TiledSampler(Exact()), (8, 8), seed=3)
    eps = normal((1, *SHAPE), generator=per_image([counter_key(3, 0, 0)]), dtype=torch.float64)
    root = torch.linalg.cholesky(ORACLE.cov)
    assert torch.equal(image.flatten(), root @ eps.flatten())


def test_window_seed_depends_on_row_and_column():
    image = sample_canvas(TiledSampler(Exact(), overlap=0.0), (24, 40), seed=3)
    for row, column in [(0, 0), (2, 4), (1, 3), (1, 1)]:
        eps = normal((1, 64), generator=per_image([counter_key(3, row, column)]), dtype=torch.float64)
        window = image[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert torch.allclose(window.flatten(), torch.linalg.cholesky(ORACLE.cov) @ eps[0], atol=1e-12)


@pytest.mark.parametrize("tileable", [False, True])
@pytest.mark.parametrize(
    ("extent", "place"), [((2, 2), (0, 0)), ((5, 9), (3, 6)), ((20, 6), (2, 14)), ((3, 24), (5, 0))]
)
def test_the_exemplar_is_returned_bit_for_bit(tileable, extent, place):
    exemplar = torch.randn(1, *extent, generator=seeded(1), dtype=torch.float64)
    sampler = Exact()
    image = sample_canvas(TiledSampler(sampler, tileable=tileable), (24, 24), exemplar=exemplar, place=place)
    inside = (slice(None), slice(place[0], place[0] + extent[0]), slice(place[1], place[1] + extent[1]))
    assert torch.equal(image[inside], exemplar)
    assert (image != 0).all()
    # Windows grow from the exemplar: every one is conditioned on known pixels.
    assert all(known.flatten(1).any(1).all() for known in sampler.masks)
    assert not torch.equal(image, sample_canvas(TiledSampler(Exact(), tileable=tileable), (24, 24)))


def test_without_an_exemplar_one_window_is_unconditional():
    sampler = Exact()
    sample_canvas(TiledSampler(sampler), (30, 22))
    assert sum(int((~known.flatten(1).any(1)).sum()) for known in sampler.masks) == 1


def test_exemplar_that_fills_the_canvas_is_returned_without_evaluations():
    exemplar = torch.randn(1, 16, 12, generator=seeded(1), dtype=torch.float64)
    sampler = Exact()
    assert torch.equal(sample_canvas(TiledSampler(sampler), (16, 12), exemplar=exemplar), exemplar)
    assert not sampler.masks


def test_windows_that_the_exemplar_covers_are_not_generated():
    exemplar = torch.randn(1, 32, 32, generator=seeded(1), dtype=torch.float64)
    sampler = Exact()
    *_, last = states(TiledSampler(sampler), (32, 40), exemplar=exemplar, place=(0, 4))
    generated = sum(len(known) for known in sampler.masks)
    assert last.done == last.windows == generated
    assert generated < 2 * 7 + 2  # a column of windows on either side
    assert all(not known.all() for call in sampler.masks for known in call)


def test_pixels_known_inside_unknown_patches_are_passed_to_the_sampler():
    """The exemplar's last column is half a patch, and known all the same."""
    sampler = Exact()
    exemplar = torch.ones(1, 8, 5, dtype=torch.float64)
    sample_canvas(TiledSampler(sampler), (8, 8), exemplar=exemplar)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:, :5] = True
    assert torch.equal(sampler.masks[0][0], expected)


@pytest.mark.parametrize("tileable", [False, True])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [(8, 10), (16, 16), (26, 34)])
def test_the_result_does_not_depend_on_the_batch_size(size, overlap, tileable):
    exemplar = torch.randn(1, 5, 6, generator=seeded(1), dtype=torch.float64)
    for options in ({}, {"exemplar": exemplar, "place": (2, 3)}):
        one, two, all_ = (
            sample_canvas(TiledSampler(Exact(), overlap, tileable, batch_size=b), size, seed=5, **options)
            for b in (1, 2, 1000)
        )
        assert torch.equal(one, two)
        assert torch.equal(one, all_)


def test_canvas_from_a_network_does_not_depend_on_the_batch_size(small_dit):
    denoiser = Denoiser(small_dit, RectifiedFlow())
    one, many, other = (
        sample_canvas(TiledSampler(Sampler(steps=4), batch_size=b), (16, 14), 1, denoiser, label=label)
        for b, label in ((1, 3), (64, 3), (64, 4))
    )
    assert torch.allclose(one, many, atol=1e-10)
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_network_runs_in_evaluation_mode_and_keeps_its_own_mode(small_dit):
    denoiser = Denoiser(small_dit, RectifiedFlow()).train()
    modes = []
    small_dit.register_forward_hook(lambda module, *_: modes.append(module.training))
    sample_canvas(TiledSampler(Sampler(steps=1)), (8, 8), denoiser=denoiser)
    assert modes == [False]
    assert denoiser.training


def test_independent_windows_are_generated_in_one_batch():
    """From the middle, 9 x 9 windows take the 9 sums of the ranks 0 .. 4 in rows and columns."""
    sampler = Exact()
    seen = list(states(TiledSampler(sampler, batch_size=1000), (40, 40)))
    assert [state.done for state in seen] == [0, 1, 5, 13, 25, 41, 57, 69, 77, 81]
    assert {state.windows for state in seen} == {81}
    assert [len(known) for known in sampler.masks] == [b.done - a.done for a, b in pairwise(seen)]


def test_states_show_the_canvas_so_far():
    exemplar = torch.full((1, 8, 8), 7, dtype=torch.float64)
    filled = [
        (int((state.canvas != 0).sum()), state.canvas.shape)
        for state in states(TiledSampler(Exact()), (18, 23), exemplar=exemplar, place=(4, 6))
    ]
    assert filled[0] == (64, (1, 18, 23))
    assert filled[-1] == (18 * 23, (1, 18, 23))
    assert all(a <= b for (a, _), (b, _) in pairwise(filled))


SAMPLES = 4000
COARSE = texture(side=16, patches=8)


def textures(canvas: TiledSampler, oracle: GaussianOracle = ORACLE) -> torch.Tensor:
    """Canvases of twice the window as channels (SAMPLES, H, W), independent of each other."""
    side = math.isqrt(oracle.cov.shape[0])
    shape = (SAMPLES, side, side)
    return canvas(oracle, size=(2 * side, 2 * side), shape=shape, seed=0, dtype=torch.float64)


def z_scores(images: torch.Tensor, lag: int) -> torch.Tensor:
    """E[x_i x_{i + lag}] at every place i of both sides against the texture's, in standard errors.

    Sides wrap around: the last `lag` places lie across the edge.
    """
    z = []
    for dim in (1, 2):
        products = (images * images.roll(-lag, dim)).mean(3 - dim)  # over the other side
        z.append((products.mean(0) - math.exp(-lag / LENGTH)) / products.std(0) * len(images) ** 0.5)
    return torch.stack(z)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
def test_inner_seams_have_the_covariance_of_the_texture_and_edges_do_not_match(overlap):
    """This texture is Markov along both sides, a known patch is enough: all z-scores lie within 4."""
    images = textures(TiledSampler(Exact(), overlap))
    for lag in (0, 1, 2, 4, 8):
        assert z_scores(images, lag)[:, : 16 - lag].abs().max() < 4
    assert z_scores(images, 1)[:, -1].max() < -50


def test_seams_are_visible_without_overlap():
    z = z_scores(textures(TiledSampler(Exact(), 0.0)), 1)
    assert z[:, 7].max() < -50
    assert z[:, [*range(7), *range(8, 15)]].abs().max() < 4


def test_a_tileable_texture_has_no_seam_anywhere():
    """With a closing stretch of four correlation lengths all 256 z-scores lie within 4, those across the edge too.

    Not further apart than that: what lies on either side of the closing stretch is drawn independently.
    """
    images = textures(TiledSampler(Exact(COARSE.cov), tileable=True), COARSE)
    for lag in (0, 1, 2, 4):
        assert z_scores(images, lag).abs().max() < 4


@pytest.mark.slow
def test_the_seams_of_a_sampler_are_as_good_as_its_windows():
    """Heun's method with the exact denoiser: the covariance across the wrapped seams lies within 4 standard errors."""
    canvas = TiledSampler(Sampler(solver=Heun(), steps=8), tileable=True)
    images = torch.cat([sample_canvas(canvas, (32, 32), seed) for seed in range(16)])
    rows, columns = images[:, 0] * images[:, -1], images[:, :, 0] * images[:, :, -1]
    across = torch.cat([rows, columns], dim=1).mean(1)  # one number per canvas
    error = float(across.std()) / len(across) ** 0.5
    assert abs(float(across.mean()) - LAG_1) < 4 * error
    assert 8 * error < LAG_1  # without wrapping the covariance is 0


@pytest.mark.parametrize(
    "sampler", [Autoregressive(steps_per_patch=2), Adaptive(steps=4), RePaint(steps=4, jump=2, resamples=2)]
)
def test_any_sampler_can_be_tiled(sampler):
    exemplar = torch.randn(1, 4, 4, generator=seeded(1), dtype=torch.float64)
    options = {"exemplar": exemplar, "place": (2, 2)}
    image = sample_canvas(TiledSampler(sampler), (12, 8), denoiser=network_denoiser(depth=1), **options)
    assert torch.equal(image[:, 2:6, 2:6], exemplar)
    assert torch.isfinite(image).all()


class Largest(TorchDispatchMode):
    """Sizes of the largest tensors that operations allocate, in descending order."""

    def __init__(self):
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        output = function(*arguments, **(named or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            inputs = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, torch.Tensor)}
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self.elements.append(tensor.untyped_storage().nbytes() // 4)
        self.elements = sorted(self.elements, reverse=True)[:8]
        return output


class Noise(ImageSampler):
    """Unknown pixels are the initial noise, whatever is known."""

    def walk(self, start):
        yield Frame(
            torch.where(start.known[:, None], start.image, start.eps), start.known_patches.to(start.x_t.dtype) * 0, 0.0
        )


@pytest.mark.parametrize("tileable", [False, True])
def test_memory_holds_only_the_canvas_and_one_batch_of_windows(tileable):
    """Only one tensor that is ever allocated has the size of the canvas; the others have at most that of a batch."""
    for size in (256, 512):
        with Largest() as largest:
            canvas = TiledSampler(Noise(), tileable=tileable, batch_size=4)
            canvas(ORACLE, size=(size, size), shape=(3, 32, 32), seed=0)
        assert largest.elements[0] == 3 * size * size
        assert largest.elements[1] == 4 * 3 * 32 * 32


@pytest.mark.parametrize(
    ("canvas", "options", "message"),
    [
        ({"overlap": 1.0}, {}, r"overlap must lie in \[0, 1\), got 1.0"),
        ({"overlap": -0.1}, {}, r"overlap must lie in \[0, 1\), got -0.1"),
        ({"overlap": 0.0, "tileable": True}, {}, "overlap must be positive for a tileable canvas"),
        ({"batch_size": 0}, {}, "batch_size must be at least 1, got 0"),
        ({}, {"size": (16, 7)}, "size must be at least that of a window, 8x8, got 16x7"),
        ({"tileable": True}, {"size": (16, 17)}, "size must be a multiple of the level patch of 2x2 pixels"),
        ({"overlap": 0.1}, {}, "overlap must round to 1 .. 3 of a window's 4 level patches, got 0.1"),
        ({"overlap": 0.95}, {}, "overlap must round to .* got 0.95"),
        ({}, {"exemplar": torch.ones(1, 20, 4)}, "exemplar must lie inside the canvas of 16x16, got 20x4"),
        ({}, {"exemplar": torch.ones(1, 4, 4), "place": (0, 13)}, r"inside the canvas.* at place \(0, 13\)"),
        ({}, {"exemplar": torch.ones(1, 4, 4), "place": (-2, 0)}, "exemplar must lie inside the canvas"),
        ({}, {"exemplar": torch.ones(1, 2, 2), "place": (1, 0)}, "exemplar must cover at least one level patch of 2x2"),
        ({}, {"exemplar": torch.ones(1, 4, 1)}, "exemplar must cover at least one level patch of 2x2"),
        ({}, {"exemplar": torch.ones(3, 4, 4)}, r"exemplar must have shape \(1, h, w\), got \(3, 4, 4\)"),
        ({}, {"exemplar": torch.ones(1, 4, 4, dtype=torch.uint8)}, "exemplar must be floating point in"),
        ({"tileable": True}, {"denoiser": texture(patches=2)}, "windows of at least 3 level patches a side, got 2"),
    ],
)
def test_unsuitable_arguments_are_rejected(canvas, options, message):
    with pytest.raises(ValueError, match=message):
        sample_canvas(TiledSampler(**canvas), **{"size": (16, 16)} | options)
