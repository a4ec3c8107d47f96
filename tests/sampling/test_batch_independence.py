"""Image i depends on seed i only: every sampler gives the same images one by one and 16 at a time."""

import inspect
from itertools import count, product

import pytest
import torch
from sampling_setup import MIXTURE, network_denoiser, random_images, run

from asyncdiff.checkpoints.object_config import build, describe
from asyncdiff.noise.orders import Raster, Shuffled
from asyncdiff.noise.paths import AsyncPatch, Synchronous, Waypoints
from asyncdiff.randomness import seeded
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.look_ahead import LookAhead
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep
from asyncdiff.sampling.step_rules import DualLoop, Sequential, Tolerance
from asyncdiff.sampling.tiling import TiledSampler

DENOISER = network_denoiser(dim=16, heads=2)
SOLVERS = (DDIM(0.25), Heun(), Multistep())
GUIDED = [ClassifierFree(2.0, high=0.9), InputGuidance(0.5)]
GUIDANCE = ([], [ClassifierFree(2.0, 0.3, 0.7)], [ClassifierFree(2.0), InputGuidance(1.0)])
ALL_RULES = [ClassifierFree(2.0), InputGuidance(0.5), LookAhead(0.5)]
STEP_RULES = (Tolerance(0.1, 8), Tolerance(0.05, 4, lead=0.25), DualLoop(0.5, 3), Sequential(4, 0.5))
# The first quarter waits while the others move: in images that know the others, nothing moves in the middle.
PAUSED = Waypoints([[[0.5, 0.2], [0.2, 0.2]], [[0.5, 0.8], [0.8, 0.8]]], [0.3, 0.7])
SAMPLERS = [
    Sampler(Synchronous(), DDIM(), 4),
    *(Sampler(AsyncPatch(), solver, 3, GUIDED) for solver in SOLVERS),
    Sampler(AsyncPatch(), Multistep(), 6, refresh=3),
    Sampler(PAUSED, Multistep(), 10),
    Autoregressive(solver=DDIM(0.25), steps_per_patch=1, guidance=GUIDED),
    Autoregressive(Shuffled(4), 0.5, DDIM(0.5), 2, GUIDED, refresh=2),
    *(
        Autoregressive(Raster(), 0.6 * (number % 2), solver, 2, rules, refresh=7)
        for number, (solver, rules) in zip(count(), product(SOLVERS, GUIDANCE), strict=False)
    ),
    *(
        Adaptive(rule, Multistep(), 8, guidance=GUIDED[:1], refresh=refresh)
        for rule in STEP_RULES
        for refresh in (1, 3)
    ),
    *(Adaptive(STEP_RULES[0], solver, 8, guidance=GUIDED[1:], refresh=2) for solver in SOLVERS),
    Adaptive(STEP_RULES[0], Multistep(), 16, budget=5),
    *(Adaptive(STEP_RULES[0], DDIM(0.2), 8, guidance=rules) for rules in (ALL_RULES, ALL_RULES[::-1])),
    Sampler(None, Multistep(), 4, [LookAhead()]),
    RePaint(4, 2, 2),
    RePaint(4, 2, 2, hold=True),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_are_equal_one_by_one_and_together(sampler):
    """Known pixels are returned bit for bit, and images of the batch have none, few, half or all of their pixels."""
    image, known = random_images(16, (1, 8, 8)), torch.rand(16, 8, 8, generator=seeded(1)) < 0.2
    known[1::4, :, :4], known[2::4, 4:], known[3::8], known[4], known[6] = True, True, True, False, True
    known[6, :4, :4] = False
    label = torch.arange(16) % 10

    def sample(rows, label=label):
        request = {"label": label[rows], "image": image[rows], "known": known[rows]}
        return run(sampler, DENOISER, rows, (1, 8, 8), **request)

    together = sample(list(range(16)))
    assert torch.equal(together[known[:, None]], image[known[:, None]])
    assert (together != image)[~known[:, None]].all()
    for row in (0, 1, 2, 4, 6):
        assert torch.allclose(together[row], sample([row])[0], rtol=0, atol=1e-12), row
    if sampler.guidance and not isinstance(sampler.guidance[0], LookAhead):
        assert not torch.allclose(together[:1], sample([0], label + 1), atol=1e-3)


@pytest.mark.parametrize("sampler", [*SAMPLERS, TiledSampler(SAMPLERS[0], 0.25, True, 3)])
def test_object_configs_have_all_arguments(sampler):
    described = describe(sampler)
    assert set(described["init_args"]) == set(inspect.signature(type(sampler)).parameters)
    rebuilt = build(described)
    assert describe(rebuilt) == described
    for part in ("solver", "step_rule"):
        if hasattr(sampler, part):
            assert vars(getattr(rebuilt, part)) == vars(getattr(sampler, part))


def test_different_seeds_give_different_images():
    out = run(Sampler(AsyncPatch(), DDIM(0.25), 8), MIXTURE, [3, 4])
    assert not torch.allclose(out[0], out[1])


def test_look_ahead_works_with_waiting_patches():
    """Patches that wait in pure noise do not keep the others from looking ahead."""
    plain, ahead = (
        run(Autoregressive(None, 0.5, DDIM(), 4, rules), network_denoiser(), [0], (1, 8, 8))
        for rules in ([], [LookAhead()])
    )
    assert (plain - ahead).abs().max() > 1e-3
