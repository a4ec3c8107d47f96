"""Level maps that the host knows: few are computed ahead of the device, and equal ones are one."""

from collections.abc import Iterator

import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda
from sampling_setup import network_denoiser, random_images

from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.sampling import (
    Adaptive,
    Autoregressive,
    ClassifierFree,
    Heun,
    InputGuidance,
    LookAhead,
    RePaint,
    Sampler,
    TiledSampler,
)
from asyncdiff.sampling.hosted_levels import MAX_MAPS, hosted, hosted_in_turn
from asyncdiff.shapes import indexed


def counted(count: int, computed: list[int]) -> Iterator[torch.Tensor]:
    """Yield maps that are equal in pairs, and list which have been computed."""
    for k in range(count):
        computed.append(k)
        yield torch.full((2, 2, 2), k // 2 / count)


def test_maps_on_the_cpu_are_computed_when_they_are_used():
    computed = []
    for k, t in enumerate(hosted_in_turn(counted(9, computed), "cpu")):
        assert computed == list(range(k + 1))
        assert t.host is t.levels is t.t
        assert t.values.tolist() == [pytest.approx(k // 2 / 9)]


def test_few_maps_are_computed_ahead_of_a_gpu_and_copied_together():
    """One at first, then twice as many at a time up to a limit; nothing waits."""
    computed = []
    with pretended_cuda() as watch:
        maps = list(
            zip(hosted_in_turn(counted(300, computed), "cuda"), iter(lambda: len(computed), None), strict=False)
        )
        assert not watch.waits
        assert sum(watch.kernels.values()) == 3 * 10  # levels, values and index of chunks of 1, 2, 4 .. 64, 64 ..
    ahead = [count - k for k, (_, count) in enumerate(maps)]
    assert ahead[0] == 1
    assert max(ahead) == MAX_MAPS
    assert all(first[0] is second[0] for first, second in zip(maps[::2], maps[1::2], strict=True))
    for k, (t, _) in enumerate(maps):
        assert t.host.equal(torch.full((2, 2, 2), k // 2 / 300))
        assert t.values[t.index].expand(2, 2, 2).equal(t.host)


def test_distinct_levels_are_those_of_a_sorted_map():
    t = torch.rand(2, 3, 4).mul(4).round() / 4
    here, sort = hosted(t), indexed(t)
    assert here.values.equal(sort.values)
    assert here.index.equal(sort.index)
    twice = here.repeat(2, 1, 1)
    assert twice.t.equal(t.repeat(2, 1, 1))
    assert twice.host.equal(twice.t)
    assert twice.values[twice.index].equal(twice.t)


BOTH = (ClassifierFree(2.0), InputGuidance(1.0))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(AsyncPatch(), Heun(), 2, guidance=[*BOTH, LookAhead()]),
        Autoregressive(steps_per_patch=1, refresh=2),
        Adaptive(steps=2, guidance=BOTH),
        RePaint(2, 1, 1),
    ],
)
def test_the_default_device_changes_nothing(sampler):
    """Scripts set it to a GPU; level maps are computed on the CPU nonetheless."""
    denoiser, image = network_denoiser().float(), random_images(2, (1, 8, 8)).float()
    known = torch.zeros(2, 8, 8, dtype=torch.bool)
    known[:, :, :3] = True

    def draw():
        return sampler(denoiser, seeds=[0, 1], shape=(1, 8, 8), image=image, known=known)

    usual = draw()
    with torch.device("meta"):
        assert torch.equal(draw(), usual)


def test_the_default_device_changes_no_tiles():
    denoiser, tiled = network_denoiser().float(), TiledSampler(Sampler(steps=1), tileable=True)
    with torch.no_grad():
        usual = tiled(denoiser, size=(12, 16), shape=(1, 8, 8), seed=0)
        with torch.device("meta"):
            assert torch.equal(tiled(denoiser, size=(12, 16), shape=(1, 8, 8), seed=0), usual)
