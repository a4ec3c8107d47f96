"""Finite numbers at both ends of the levels, in every precision; levels and weights never in less than float32."""

import itertools
import math

import pytest
import torch
from conftest import randomize_weights
from lightning.pytorch import Callback
from small_runs import quiet_trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.likelihood import CategoricalDecoder, GaussianDecoder, bound, discrete_bound
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.targets import CleanTarget, NoiseTarget, VelocityTarget
from asyncdiff.denoising.weightings import ELBO, Epsilon, Sigmoid, Velocity
from asyncdiff.networks.dit import DiT
from asyncdiff.noise.level_samplers import AlongPath, LevelDraw
from asyncdiff.noise.orders import Raster
from asyncdiff.noise.paths import LOWEST_FLOOR, AsyncPatch, Floored, Ordered, Synchronous
from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep
from asyncdiff.shapes import IndexedLevels, level_map
from datamodules import Digits

LEVELS = (0.0, 1e-12, 1e-7, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-7, 1.0)
PROCESSES = (RectifiedFlow(), CosineVP(), LinearVP())
TARGETS = (VelocityTarget(), NoiseTarget(), CleanTarget(), CleanTarget(1e-4))
WEIGHTINGS = (Velocity(), Epsilon(), Sigmoid(), Sigmoid(-4.0), ELBO())
DTYPES = (torch.float32, torch.float64)


def named(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else type(value).__name__


def network(dtype, **options):
    torch.manual_seed(0)
    options = {"channels": 1, "patch_size": 2, "dim": 16, "depth": 1, "heads": 2, "classes": 10, **options}
    return randomize_weights(DiT(**options)).to(dtype)


def maps(dtype):
    """Return constant maps of every level, and one map with all levels."""
    t = torch.tensor(LEVELS, dtype=dtype)
    mixed = torch.cat([t, t.flip(0)]).reshape(1, 4, 4)
    return torch.cat([t[:, None, None].expand(-1, 4, 4), mixed])


def images(count, dtype):
    return torch.rand(count, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_processes_are_finite_at_every_level(process, dtype):
    t = maps(dtype)
    x, eps = images(len(t), dtype), torch.randn(len(t), 1, 8, 8, dtype=dtype)
    v = process.velocity(x, eps, t)
    x_t = process.noised(x, eps, t)
    for value in (process.alpha(t), process.sigma(t), process.dalpha(t), process.wronskian(t), v, x_t):
        assert value.isfinite().all()
        assert value.dtype == dtype
    # Exact on the way back, at both ends too. In float32 LinearVP's alpha is off by some of its last digits.
    near = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    assert (process.x_from_v(x_t, v, t) - x).abs().max() < near
    assert (process.eps_from_v(x_t, v, t) - eps).abs().max() < near
    for to in t:
        later = torch.maximum(t, to)
        assert process.diffused(x_t, eps, t, later).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_the_signal_to_noise_ratio_is_infinite_at_the_ends_only(process, dtype):
    t = torch.tensor(LEVELS[1:-1], dtype=dtype)
    for value in (process.logsnr(t), process.snr(t), process.dlogsnr(t)):
        assert value.isfinite().all()
    assert torch.allclose(process.level(process.logsnr(t)), t, atol=1e-6)
    assert process.logsnr(torch.zeros((), dtype=dtype)) == math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(
    ("process", "target", "weighting"), list(itertools.product(PROCESSES, TARGETS, WEIGHTINGS)), ids=named
)
def test_losses_and_their_gradients_are_finite_at_every_level(process, target, weighting, dtype):
    if isinstance(target, NoiseTarget) and not isinstance(process, LinearVP):
        with pytest.raises(ValueError, match=r"target NoiseTarget needs a process with alpha\(1\) > 0"):
            Denoiser(network(dtype), process, target)
        return
    denoiser, t = Denoiser(network(dtype, uncertainty=True), process, target), maps(dtype)
    x, eps = images(len(t), dtype), torch.randn(len(t), 1, 8, 8, dtype=dtype)
    slope = torch.ones_like(t)
    if isinstance(weighting, ELBO):  # infinite at t = 0, where it refuses to be trained
        assert (weighting(process, t[:1], slope[:1]) == math.inf).all()
        slope = slope.masked_fill(t == 0, 0)
    result = training_loss(denoiser, x, eps, LevelDraw(t, slope), weighting, torch.arange(len(t)))
    assert all(part.isfinite().all() for part in (result.per_image, result.error, result.uncertainty))
    (result.per_image.mean() + result.uncertainty.mean()).backward()
    assert all(p.grad.isfinite().all() for p in denoiser.parameters() if p.grad is not None)
    assert result.per_image[0] == 0  # nothing is to be learned of an image without noise


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.25), DDIM(1.0), Heun(), Multistep()], ids=named)
def test_steps_between_any_two_levels_are_finite(solver, process, dtype):
    denoiser = Denoiser(network(dtype).eval(), process)
    t = maps(dtype)
    x_t, noise = images(len(t), dtype), torch.randn(len(t), 1, 8, 8, dtype=dtype)
    labels = torch.arange(len(t))
    with torch.no_grad():
        for level in LEVELS:
            to = t.clamp(max=level)  # only patches above this level move
            moved = solver(lambda x, at: denoiser(x, at, labels), x_t, t, to, noise)
            assert moved.isfinite().all()
            assert moved.dtype == dtype
            still = (to == t).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
            assert torch.equal(moved[still], x_t[still])


@pytest.mark.parametrize("target", TARGETS, ids=named)
@pytest.mark.parametrize("guidance", [ClassifierFree(3.0), InputGuidance(1.0)], ids=named)
def test_guided_trajectories_are_finite_at_both_ends(guidance, target):
    process = LinearVP() if isinstance(target, NoiseTarget) else CosineVP()
    denoiser = Denoiser(network(torch.float32).eval(), process, target)
    known = torch.zeros(2, 8, 8, dtype=torch.bool)
    known[:, :, :4] = True
    for solver, path in itertools.product((DDIM(0.25), Heun(), Multistep()), (Synchronous(), Ordered(Raster()))):
        sampler = Sampler(path, solver, steps=4, guidance=[guidance])
        given = {"image": images(2, torch.float32), "known": known}
        with torch.no_grad():
            drawn = sampler(denoiser, seeds=[0, 1], shape=(1, 8, 8), label=torch.tensor([1, 2]), **given)
        assert drawn.isfinite().all()


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("decoder", [CategoricalDecoder(), GaussianDecoder()], ids=named)
@pytest.mark.parametrize("t_min", [LOWEST_FLOOR, 1e-7, 1e-3])
def test_bounds_are_finite_down_to_the_lowest_floor(process, decoder, t_min):
    for dtype in DTYPES:
        denoiser = Denoiser(network(dtype).eval(), process)
        x = ((images(2, dtype) + 1) * 127.5).round() / 127.5 - 1
        options = {"t_min": t_min, "decoder": decoder, "label": torch.arange(2)}
        for path in (Synchronous(), AsyncPatch()):
            for found in (
                bound(denoiser, x, path, points=3, **options),
                discrete_bound(denoiser, x, path, steps=3, **options),
            ):
                assert all(part.isfinite().all() for part in (found.total, found.per_patch, found.by_level))


def test_floors_that_overflow_float32_are_refused():
    with pytest.raises(ValueError, match="t_min must be at least 1e-12, got 1e-20"):
        Floored(AsyncPatch(), 1e-20)


# Precision


class Types(Callback):
    """Records the dtypes of the inputs and outputs of the network and of the terms of the loss."""

    def __init__(self):
        self.seen = {}

    def on_train_start(self, trainer, module):
        def record(denoiser, args, prediction):
            x_t, t, _ = args
            assert isinstance(t, IndexedLevels) == bool(module.level_values)
            self.seen |= {"x_t": x_t.dtype, "t": level_map(t).dtype, "v": prediction.v.dtype}

        module.denoiser.register_forward_hook(record)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        (facts,) = module.guard._batches
        self.seen |= {name: facts[name].dtype for name in ("loss", "loss_per_image", "levels")}

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.seen |= {f"output {name}": value.dtype for name, value in outputs.items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("level_values", [0, 256])
def test_levels_weights_and_losses_are_float32_in_every_precision(tmp_path, precision, level_values):
    seen = Types()

    class Watched(Sigmoid):
        def __call__(self, process, t, slope):
            weight = super().__call__(process, t, slope)
            seen.seen |= {"weight": weight.dtype} | ({} if slope is None else {"slope": slope.dtype})
            return weight

    model = AsyncDiffusion(network(torch.float32), weighting=Watched(), image_size=8, level_values=level_values)
    trainer = quiet_trainer(tmp_path, max_steps=1, precision=precision, callbacks=[seen])
    trainer.fit(model, datamodule=Digits(batch_size=8))
    expected = {"x_t", "t", "v", "weight", "loss", "loss_per_image", "levels", "output error"}
    assert expected | (set() if level_values else {"slope"}) <= set(seen.seen)
    assert set(seen.seen.values()) == {torch.float32}, seen.seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=named)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=named)
def test_autocast_does_not_change_the_loss(weighting, dtype):
    """The same draw under autocast has equal levels, weights and targets; only the network is rounded."""
    denoiser, levels = Denoiser(network(torch.float32), RectifiedFlow()), AlongPath(Floored(AsyncPatch(), 1e-3))
    x, eps = images(4, torch.float32), torch.randn(4, 1, 8, 8)

    def compute():
        draw = levels(4, (4, 4), generator=torch.Generator().manual_seed(0))
        return draw, weighting(denoiser.process, draw.t, draw.slope), training_loss(denoiser, x, eps, draw, weighting)

    draw, weight, plain = compute()
    with torch.autocast("cpu", dtype=dtype):
        cast_draw, cast_weight, cast = compute()
    assert torch.equal(cast_draw.t, draw.t)
    assert torch.equal(cast_draw.slope, draw.slope)
    assert torch.equal(cast_weight, weight)
    assert {v.dtype for v in (cast.t, cast.error, cast.per_image, cast_weight)} == {torch.float32}
    assert not torch.equal(cast.error, plain.error)  # autocast was on
    assert torch.allclose(cast.per_image, plain.per_image, rtol=0.05)
