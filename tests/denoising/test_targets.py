"""Predictions do not depend on the target of the network: the velocity is the same."""

import pytest
import torch
from noise.laws import refusals
from small_runs import save_untrained, small_dit

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.denoising.targets import CleanTarget, NoiseTarget, VelocityTarget
from asyncdiff.denoising.weightings import Epsilon
from asyncdiff.noise.level_samplers import LevelDraw
from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM
from asyncdiff.shapes import to_pixels
from asyncdiff.training.lightning_module import AsyncDiffusion

SHAPE, GRID = (1, 4, 4), (2, 2)
EXACT = CleanTarget(1e-9)  # below every sigma in these tests
PAIRS = [(VelocityTarget(), RectifiedFlow()), (NoiseTarget(), LinearVP())]
PAIRS += [(EXACT, process) for process in (RectifiedFlow(), CosineVP(), LinearVP())]
FLOORED_PAIRS = [(CleanTarget(), RectifiedFlow()), (CleanTarget(), LinearVP())]


def pairs(values: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("target", "process"), values, ids=lambda value: type(value).__name__)


class ExactNetwork(torch.nn.Module):
    """A network with the exact output for a target."""

    def __init__(self, target, process):
        super().__init__()
        self.exact = GaussianOracle(*random_gaussian(16), GRID, process)
        self.form = {VelocityTarget: "v", NoiseTarget: "eps", CleanTarget: "x"}[type(target)]

    def forward(self, x_t, t, label=None):
        return getattr(self.exact(x_t, t), self.form)

    def grid(self, size):
        return GRID


def denoiser(target, process) -> Denoiser:
    return Denoiser(ExactNetwork(target, process), process, target)


def randn(seed: int) -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=seeded(seed), dtype=torch.float64)


@pairs(PAIRS)
def test_predictions_and_samples_do_not_depend_on_the_target(target, process):
    x_t, t = randn(0), 0.01 + 0.98 * torch.rand(3, *GRID, generator=seeded(1), dtype=torch.float64)
    ours, oracle = denoiser(target, process), GaussianOracle(*random_gaussian(16), GRID, process)
    found, true = ours(x_t, t), oracle(x_t, t)
    for form in ("v", "x", "eps"):
        assert torch.allclose(getattr(found, form), getattr(true, form), atol=1e-10)
    found, true = (
        Sampler(solver=DDIM(0.25), steps=10)(chosen, seeds=range(2), shape=SHAPE, dtype=torch.float64)
        for chosen in (ours, oracle)
    )
    assert torch.allclose(found, true, atol=1e-9)


@pairs(PAIRS + FLOORED_PAIRS)
def test_everything_is_finite_at_the_ends(target, process):
    """Values and gradients; a patch at t = 0 has no loss, and its prediction is the image itself."""
    network = small_dit(classes=0)
    ours, x = Denoiser(network, process, target), randn(0)[:2].float()
    t = torch.tensor([[[0.0, 1.0], [0.5, 1e-6]], [[0.0, 0.0], [1.0, 1.0]]])
    prediction = ours(x, t)
    assert all(form.isfinite().all() for form in (prediction.v, prediction.x, prediction.eps))
    clean = to_pixels(t == 0, (4, 4))
    assert torch.equal(prediction.x[clean], x[clean])
    loss = training_loss(ours, x, torch.randn_like(x), LevelDraw(t), Epsilon()).per_image
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_noise_target_with_epsilon_weighting_gives_the_ddpm_loss():
    """Epsilon's weight on the velocity's error is the plain squared error of the output."""
    process, target = LinearVP(), NoiseTarget()
    x, eps, t = randn(1), randn(2), torch.rand(3, *GRID, generator=seeded(3), dtype=torch.float64)
    plain = (ExactNetwork(target, process)(process.noised(x, eps, t), t) - eps).square().mean(dim=(1, 2, 3))
    found = training_loss(denoiser(target, process), x, eps, LevelDraw(t), Epsilon()).per_image
    assert torch.allclose(found, plain, rtol=1e-9)


def test_target_does_not_change_log_variances():
    network = small_dit(uncertainty=True)
    x_t, t = torch.randn(2, *SHAPE), torch.rand(2, *GRID)
    by_noise, by_velocity = (Denoiser(network, LinearVP(), target)(x_t, t).logvar for target in (NoiseTarget(), None))
    assert torch.equal(by_noise, by_velocity)


def test_a_checkpoint_keeps_target_and_process(tmp_path):
    process = LinearVP(beta_end=0.01, steps=500)
    sampler = Sampler(steps=2)
    model = AsyncDiffusion(small_dit(), process=process, target=CleanTarget(0.1), sampler=sampler, image_size=4)
    again = AsyncDiffusion.load_from_checkpoint(save_untrained(tmp_path, model) / "checkpoints/last.ckpt")
    assert isinstance(again.target, CleanTarget)
    assert (again.target.floor, again.process.beta_end, again.process.steps) == (0.1, 0.01, 500)
    assert torch.equal(again.generate([0, 1]), model.eval().generate([0, 1]))
    assert isinstance(AsyncDiffusion(small_dit(), image_size=4).target, VelocityTarget)  # the default


test_invalid_targets_are_refused = refusals(
    {
        "alpha(1) > 0, got RectifiedFlow, where noise": lambda: denoiser(NoiseTarget(), RectifiedFlow()),
        "alpha(1) > 0, got CosineVP, where noise": lambda: denoiser(NoiseTarget(), CosineVP()),
        "floor must be positive, got 0.0": lambda: CleanTarget(0.0),
        "floor must be positive, got -1.0": lambda: CleanTarget(-1.0),
    }
)
