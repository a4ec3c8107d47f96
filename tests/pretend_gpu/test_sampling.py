"""Sampling on the pretended GPU: images are those of the CPU bit for bit, and the host waits for nothing.

A walk whose level maps are known beforehand waits for nothing at all; one whose steps depend on predictions waits at
most once per network evaluation.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda, run_on_both
from pretend_gpu.watch import Watch
from small_runs import randomize_weights
from torch import Tensor

import asyncdiff.noise
import asyncdiff.sampling
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.networks import DiT, UNet, modulation
from asyncdiff.noise import AsyncPatch, Floored, Path, RectifiedFlow, Waypoints
from asyncdiff.noise.orders import Shuffled
from asyncdiff.noise.paths import Conditioned, Ordered, PartiallyNoised
from asyncdiff.randomness import RandomSource, fork, per_image, seeded
from asyncdiff.sampling import (
    DDIM,
    Adaptive,
    Autoregressive,
    ClassifierFree,
    DualLoop,
    Guidance,
    Heun,
    ImageSampler,
    InputGuidance,
    LookAhead,
    Multistep,
    RePaint,
    Sampler,
    Sequential,
    Solver,
    StepRule,
    TiledSampler,
    Tolerance,
)

SHAPE, SEEDS, STEPS = (1, 8, 8), (0, 1, 2), 4
BOTH = (ClassifierFree(2.0), InputGuidance(1.0))
GUIDANCES: dict[str, tuple[Guidance, ...]] = {
    "ClassifierFree": (ClassifierFree(2.0, low=0.3),),
    "InputGuidance": (InputGuidance(1.0),),
    "LookAhead": (LookAhead(),),
    "both": BOTH,
    "all": (*BOTH, LookAhead()),
}
PATHS: list[Path] = [AsyncPatch(), Ordered(Shuffled(3), 0.5), Waypoints([[[0.1, 0.5], [0.5, 0.9]]])]
SOLVERS: list[Solver] = [DDIM(), DDIM(0.25), Heun(), Multistep()]
RULES: list[StepRule] = [Tolerance(0.3), DualLoop(), Sequential(together=4)]

PLAIN: dict[str, ImageSampler] = {
    **{f"path {type(path).__name__}": Sampler(path, steps=STEPS) for path in PATHS},
    **{f"solver {type(s).__name__} {s.stochastic}": Sampler(AsyncPatch(), s, STEPS) for s in SOLVERS},
    **{f"guidance {name}": Sampler(AsyncPatch(), steps=STEPS, guidance=rules) for name, rules in GUIDANCES.items()},
    "synchronous all": Sampler(steps=STEPS, guidance=GUIDANCES["all"]),
    "Autoregressive": Autoregressive(overlap=0.5, steps_per_patch=2),
    "refresh": Autoregressive(steps_per_patch=1, refresh=4, margin=1, guidance=BOTH),
    "refresh Heun": Sampler(AsyncPatch(), Heun(), STEPS, refresh=2),
    "RePaint": RePaint(STEPS, 2, 2),
    "RePaint hold": RePaint(STEPS, 2, 2, hold=True, guidance=BOTH),
}
ADAPTIVE: dict[str, ImageSampler] = {
    **{f"rule {type(rule).__name__}": Adaptive(rule, steps=STEPS) for rule in RULES},
    **{f"solver {type(s).__name__} {s.stochastic}": Adaptive(RULES[0], s, STEPS) for s in SOLVERS},
    **{f"guidance {name}": Adaptive(RULES[0], steps=STEPS, guidance=rules) for name, rules in GUIDANCES.items()},
    "refresh": Adaptive(RULES[2], Heun(), STEPS, refresh=3, guidance=BOTH),
}
SAMPLERS = [pytest.param(s, id=name) for name, s in PLAIN.items()]
SAMPLERS += [pytest.param(s, id=f"Adaptive {name}") for name, s in ADAPTIVE.items()]


@dataclass
class Walk:
    """What was seen of a walk on one device."""

    frames: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)  # before each evaluation, and at the end


def network(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind is UNet:
        options: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_dim": 8, "level_patch_size": 2}
        return UNet(channels=1, classes=3, uncertainty=True, **options)
    return DiT(channels=1, patch_size=2, dim=16, depth=1, heads=2, classes=3, uncertainty=True)


def walk(sampler: ImageSampler, kind: type, **given: Tensor) -> Callable[[torch.device, Watch], Walk]:
    """Return the flow that samples on a device; waits are counted from its beginning, with all inputs on the host."""
    built = randomize_weights(network(kind)).eval()

    def flow(device: torch.device, watch: Watch) -> Walk:
        seen, denoiser = Walk(), Denoiser(built, RectifiedFlow()).to(device)

        def note(*_: Any) -> None:
            watch.step()
            seen.waits.append(len(watch.waits))

        hook = denoiser.network.register_forward_pre_hook(note)
        watch.clear()
        frames = sampler.frames(
            denoiser, seeds=SEEDS, shape=SHAPE, label=torch.arange(len(SEEDS)), device=device, **given
        )
        seen.frames = [(frame.x_t, frame.t, frame.s) for frame in frames]
        seen.waits.append(len(watch.waits))
        hook.remove()
        return seen

    return flow


def inputs(sampler: ImageSampler) -> Iterator[dict[str, Tensor]]:
    """Yield what a sampler can be given: nothing, known pixels that cut patches, and levels to start from."""
    image = torch.rand(len(SEEDS), *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    known = torch.zeros(len(SEEDS), 8, 8, dtype=torch.bool)
    known[0, :, :5], known[1, :3] = True, True
    if not isinstance(sampler, RePaint):
        yield {}
    yield {"image": image, "known": known}
    if sampler.supports_start_levels:
        levels = torch.linspace(0, 1, 16).reshape(1, 4, 4).repeat(len(SEEDS), 1, 1)
        yield {"image": image, "known": known, "levels": levels}


def check(sampler: ImageSampler, kind: type, rounding: float) -> None:
    """Compare walks on both devices for all inputs; images may differ by `rounding`, levels never."""
    most = 1 if isinstance(sampler, Adaptive) else 0
    for given in inputs(sampler):
        watch, usual, found = run_on_both(walk(sampler, kind, **given))
        assert not watch.mixed
        assert found.waits[0] == 0, watch.waits
        assert all(after - before <= most for before, after in pairwise(found.waits)), watch.waits
        for (x_t, t, s), (x_there, t_there, s_there) in zip(usual.frames, found.frames, strict=True):
            assert torch.allclose(x_there, x_t, rtol=0, atol=rounding)
            assert torch.equal(t_there, t)
            assert s_there == s


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_walks_wait_for_nothing_and_give_the_images_of_the_cpu(sampler, monkeypatch):
    """Bit for bit, if the network computes as on a CPU.

    With look-ahead a GPU embeds the levels that may occur, a CPU those that do, which changes the order of sums, too.
    """
    monkeypatch.setattr(modulation, "few_passes", lambda _: False)
    check(sampler, DiT, 1e-6 if any(isinstance(rule, LookAhead) for rule in sampler.guidance) else 0.0)


@pytest.mark.parametrize("sampler", [PLAIN["synchronous all"], PLAIN["refresh"], ADAPTIVE["refresh"]])
def test_walks_wait_for_nothing_with_a_network_that_computes_as_on_a_gpu(sampler):
    check(sampler, DiT, 1e-4)


@pytest.mark.parametrize("sampler", [PLAIN["guidance both"], PLAIN["RePaint"], ADAPTIVE["solver Heun False"]])
def test_walks_of_a_unet_wait_for_nothing(sampler):
    check(sampler, UNet, 1e-4)


def concrete(module: Any, base: type) -> set[type]:
    """Return the classes of a kind that a package offers."""
    offered = (getattr(module, name) for name in module.__all__)
    return {c for c in offered if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)}


def test_all_samplers_solvers_rules_guidance_and_paths_are_among_the_walks():
    samplers = [*PLAIN.values(), *ADAPTIVE.values()]
    assert concrete(asyncdiff.sampling, ImageSampler) <= {type(sampler) for sampler in samplers}
    for kind in (Sampler, Adaptive):
        with_kind = [s for s in samplers if isinstance(s, kind)]
        assert concrete(asyncdiff.sampling, Solver) <= {type(s.solver) for s in with_kind}
        assert concrete(asyncdiff.sampling, Guidance) <= {type(rule) for s in with_kind for rule in s.guidance}
    assert concrete(asyncdiff.sampling, StepRule) <= {type(s.step_rule) for s in samplers if isinstance(s, Adaptive)}
    wrapped = {Conditioned, PartiallyNoised, Floored}  # by samplers; samplers refuse paths with a floor
    assert concrete(asyncdiff.noise, Path) - wrapped <= {type(s.path) for s in samplers if isinstance(s, Sampler)}


def test_tiled_sampling_waits_for_nothing():
    built = randomize_weights(network(DiT)).eval()

    def flow(device: torch.device, watch: Watch) -> Tensor:
        denoiser = Denoiser(built, RectifiedFlow()).to(device)
        watch.clear()
        exemplar = torch.linspace(-1, 1, 20).reshape(1, 4, 5)
        tiled = TiledSampler(Sampler(steps=2), tileable=True, batch_size=3)
        with torch.no_grad():
            return tiled(denoiser, size=(16, 20), shape=SHAPE, seed=0, exemplar=exemplar, place=(3, 2), device=device)

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert not watch.waits
    assert torch.allclose(found, usual, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "call"),
    [
        (Adaptive(Tolerance(0.3), Heun(), 4), 2),
        (Sampler(steps=4, guidance=[LookAhead()]), 2),
        (Sampler(steps=1, guidance=[LookAhead(), ClassifierFree(2.0)]), 1),  # the last one
    ],
)
def test_predictions_that_are_not_finite_stop_sampling_before_its_result(sampler, call):
    """A GPU finds the error later than the CPU, and it is the same."""

    class Spoiled(Denoiser):
        def forward(self, x_t, t, label=None, *, kv_cache=None):
            prediction = super().forward(x_t, t, label, kv_cache=kv_cache)
            self.calls += 1
            if self.calls == call:
                prediction.v[1, 0, 3, 5] = torch.nan
            return prediction

    def flow(device: torch.device, watch: Watch) -> str:
        denoiser = Spoiled(built, RectifiedFlow()).to(device)
        denoiser.calls = 0
        with pytest.raises(FloatingPointError, match="in image 1 of the batch at row 1, column 2") as error:
            sampler(denoiser, seeds=SEEDS, shape=SHAPE, device=device)
        return str(error.value)

    built = randomize_weights(network(DiT)).eval()
    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert found == usual


def test_numbers_of_images_are_those_of_the_cpu_and_are_copied_without_waiting():
    def flow(device: torch.device, watch: Watch) -> Tensor:
        watch.clear()
        source = RandomSource(3, (2, 2), per_image(SEEDS), device, torch.float32)
        return torch.cat([source.normal(5), source.uniform(5), source.stratified()[:, None]], dim=1)

    watch, usual, found = run_on_both(flow)
    assert not watch.mixed
    assert not watch.waits
    assert torch.equal(found, usual)
    assert torch.equal(usual[:, :5], torch.stack([torch.randn(5, generator=seeded(seed)) for seed in SEEDS]))


def test_generators_of_a_gpu_are_forked_without_reading_from_it():
    """Each fork differs from its parent and from the next fork, and equals that of an equal parent."""
    with pretended_cuda() as watch:
        parents = [seeded(3, "cuda"), seeded(3, "cuda")]
        forks = [[fork(parent) for _ in range(2)] for parent in parents]
        assert not watch.waits
        assert not watch.mixed
        numbers = [torch.rand(4, generator=each, device="cuda").cpu() for each in (*forks[0], *forks[1], parents[0])]
    assert torch.equal(numbers[0], numbers[2])
    assert torch.equal(numbers[1], numbers[3])
    assert len({tuple(each.tolist()) for each in numbers}) == 3
