"""Image i depends on seed i only: every sampler gives the same images one by one and 64 at a time."""

import pytest
import torch
from conftest import randomize_weights

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.networks.dit import DiT
from asyncdiff.noise.orders import Shuffled
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.look_ahead import LookAhead
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep
from asyncdiff.sampling.step_rules import DualLoop, Sequential, Tolerance

GUIDED = [ClassifierFree(2.0, high=0.9), InputGuidance(0.5)]
SAMPLERS = {
    "path": Sampler(AsyncPatch(), DDIM(0.25), 4),
    "guided": Sampler(AsyncPatch(), Heun(), 3, GUIDED),
    "partial updates": Sampler(AsyncPatch(), Multistep(), 6, refresh=3),
    "autoregressive": Autoregressive(Shuffled(4), 0.5, DDIM(0.5), 2, GUIDED, refresh=2),
    "tolerance": Adaptive(Tolerance(0.1), Multistep(), 8, guidance=GUIDED[1:], refresh=2),
    "dual loop": Adaptive(DualLoop(), DDIM(0.25), 4),
    "sequential": Adaptive(Sequential(together=4), DDIM(), 2),
    "look-ahead": Sampler(None, Multistep(), 4, [LookAhead()]),
    "repaint": RePaint(4, 2, 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_equal_one_by_one_and_64_at_a_time(name):
    sampler: ImageSampler = SAMPLERS[name]
    torch.manual_seed(0)
    network = DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, classes=10, uncertainty=True).double()
    denoiser = Denoiser(randomize_weights(network).eval().requires_grad_(False), RectifiedFlow())
    image = torch.rand(64, 1, 8, 8, generator=seeded(0), dtype=torch.float64) * 2 - 1
    known = torch.rand(64, 8, 8, generator=seeded(1)) < 0.2
    known[::2, :, :4] = True
    known[1::4, 4:] = True
    label = torch.arange(64) % 10

    def sample(rows: list[int]) -> torch.Tensor:
        return sampler(
            denoiser,
            seeds=rows,
            shape=(1, 8, 8),
            label=label[rows],
            image=image[rows],
            known=known[rows],
            dtype=torch.float64,
        )

    together = sample(list(range(64)))
    assert torch.equal(together[known[:, None]], image[known[:, None]])
    for row in (0, 1, 2, 37):
        assert torch.allclose(together[row], sample([row])[0], rtol=0, atol=1e-9), f"{name}: image {row}"


def test_look_ahead_works_with_waiting_patches():
    """Patches that wait in pure noise do not keep the others from looking ahead."""
    torch.manual_seed(0)
    network = DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, uncertainty=True).double()
    denoiser = Denoiser(randomize_weights(network).eval().requires_grad_(False), RectifiedFlow())
    options = {"seeds": [0], "shape": (1, 8, 8), "dtype": torch.float64}
    plain, ahead = (Autoregressive(None, 0.5, DDIM(), 4, rules)(denoiser, **options) for rules in ([], [LookAhead()]))
    assert (plain - ahead).abs().max() > 1e-3
