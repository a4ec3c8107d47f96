"""Predictions do not depend on the target of the network: the velocity is the same."""

import pytest
import torch
from conftest import randomize_weights
from lightning.pytorch import Trainer

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.denoising.targets import CleanTarget, NoiseTarget, VelocityTarget
from asyncdiff.denoising.weightings import Epsilon
from asyncdiff.networks.dit import DiT
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
every_pair = pytest.mark.parametrize(("target", "process"), PAIRS, ids=lambda value: type(value).__name__)


class ExactNetwork(torch.nn.Module):
    """A network with the exact output for a target."""

    def __init__(self, target, process):
        super().__init__()
        self.exact = GaussianOracle(*random_gaussian(16), GRID, process)
        self.form = {VelocityTarget: "v", NoiseTarget: "eps", CleanTarget: "x"}[type(target)]

    def forward(self, x_t, t, label=None, *, unique=None):
        return getattr(self.exact(x_t, t), self.form)

    def grid(self, size):
        return GRID


def denoiser(target, process) -> Denoiser:
    return Denoiser(ExactNetwork(target, process), process, target)


def noisy(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=seeded(0), dtype=torch.float64)


@every_pair
def test_predictions_do_not_depend_on_the_target(target, process):
    x_t, t = noisy(), 0.01 + 0.98 * torch.rand(3, *GRID, generator=seeded(1), dtype=torch.float64)
    found, true = denoiser(target, process)(x_t, t), GaussianOracle(*random_gaussian(16), GRID, process)(x_t, t)
    for form in ("v", "x", "eps"):
        assert torch.allclose(getattr(found, form), getattr(true, form), atol=1e-10)


@every_pair
def test_samples_do_not_depend_on_the_target(target, process):
    sampler = Sampler(solver=DDIM(0.25), steps=10)
    found = sampler(denoiser(target, process), seeds=range(2), shape=SHAPE, dtype=torch.float64)
    oracle = GaussianOracle(*random_gaussian(16), GRID, process)
    assert torch.allclose(found, sampler(oracle, seeds=range(2), shape=SHAPE, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(
    ("target", "process"),
    [*PAIRS, (CleanTarget(), RectifiedFlow()), (CleanTarget(), LinearVP())],
    ids=lambda value: type(value).__name__,
)
def test_everything_is_finite_at_the_ends(target, process):
    """Values and gradients; a patch at t = 0 has no loss, and its prediction is the image itself."""
    torch.manual_seed(0)
    network = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2))
    x = torch.randn(2, *SHAPE, generator=seeded(0))
    t = torch.tensor([[[0.0, 1.0], [0.5, 1e-6]], [[0.0, 0.0], [1.0, 1.0]]])
    prediction = Denoiser(network, process, target)(x, t)
    assert all(form.isfinite().all() for form in (prediction.v, prediction.x, prediction.eps))
    clean = to_pixels(t == 0, (4, 4))
    assert torch.equal(prediction.x[clean], x[clean])
    loss = training_loss(Denoiser(network, process, target), x, torch.randn_like(x), LevelDraw(t), Epsilon()).per_image
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP()])
def test_noise_target_needs_a_process_with_signal_at_t_1(process):
    with pytest.raises(ValueError, match=rf"alpha\(1\) > 0, got {type(process).__name__}, .* use LinearVP"):
        Denoiser(ExactNetwork(NoiseTarget(), process), process, NoiseTarget())


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_floors_that_are_not_positive_are_refused(floor):
    with pytest.raises(ValueError, match="floor must be positive"):
        CleanTarget(floor)


def test_noise_target_with_epsilon_weighting_gives_the_ddpm_loss():
    """Epsilon's weight on the velocity's error is the plain squared error of the output."""
    process, target = LinearVP(), NoiseTarget()
    x, eps = (torch.randn(3, *SHAPE, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    t = torch.rand(3, *GRID, generator=seeded(3), dtype=torch.float64)
    network = ExactNetwork(target, process)
    plain = (network(process.noised(x, eps, t), t) - eps).square().mean(dim=(1, 2, 3))
    found = training_loss(Denoiser(network, process, target), x, eps, LevelDraw(t), Epsilon()).per_image
    assert torch.allclose(found, plain, rtol=1e-9)


def test_target_does_not_change_log_variances():
    torch.manual_seed(0)
    network = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, uncertainty=True))
    x_t, t = torch.randn(2, *SHAPE), torch.rand(2, *GRID)
    logvar = Denoiser(network, LinearVP(), NoiseTarget())(x_t, t).logvar
    assert torch.equal(logvar, Denoiser(network, LinearVP())(x_t, t).logvar)


def test_a_checkpoint_keeps_target_and_process(tmp_path):
    torch.manual_seed(0)
    network = randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2))
    process = LinearVP(beta_end=0.01, steps=500)
    model = AsyncDiffusion(network, process=process, target=CleanTarget(0.1), sampler=Sampler(steps=2), image_size=4)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = AsyncDiffusion.load_from_checkpoint(tmp_path / "model.ckpt")
    assert isinstance(again.target, CleanTarget)
    assert (again.target.floor, again.process.beta_end, again.process.steps) == (0.1, 0.01, 500)
    assert torch.equal(again.generate([0, 1]), model.eval().generate([0, 1]))


def test_the_default_target_is_the_velocity():
    model = AsyncDiffusion(DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2), image_size=4)
    assert isinstance(model.target, VelocityTarget)
