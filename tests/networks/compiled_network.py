"""Print as JSON what a compiled network computes and how often it is compiled.

A process of its own, since Dynamo cannot trace the type checks: test_compiled.py runs it with JAXTYPING_DISABLE=1.
"""

import json
import sys

import torch
from small_networks import dit, draw, noisy, single, unet
from torch._dynamo.testing import CompileCounterWithBackend

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.networks import modulation
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.sampling.samplers import Sampler

NAME, OPTIONS, BACKEND, GRIDS, SAMPLES, PRODUCTS = json.loads(sys.argv[1])
LABEL = torch.arange(6)


def network() -> torch.nn.Module:
    return {"dit": dit, "unet": unet}[NAME](classes=10, **OPTIONS).float().train()


def step(net: torch.nn.Module, count: int, grid: int) -> list[torch.Tensor]:
    """The output and all gradients, with `count` distinct levels."""
    net.zero_grad()
    levels = single(draw((grid, grid), 6, count))
    with torch.autocast("cpu", torch.bfloat16, enabled=PRODUCTS):
        v = net(noisy(6).float(), levels, LABEL)
    v.square().mean().backward()
    return [v.detach(), *(p.grad.clone() for p in net.parameters())]


def samples(net: torch.nn.Module) -> list[torch.Tensor]:
    """Images sampled with one level per image, and with levels that all differ."""
    denoiser = Denoiser(net, RectifiedFlow()).requires_grad_(False)
    options = {"seeds": range(6), "shape": (1, 8, 8), "label": LABEL}
    return [Sampler(path, steps=4)(denoiser, **options) for path in (None, AsyncPatch())]


if PRODUCTS:  # as on a GPU
    modulation.few_passes = lambda device: True
eager, compiled, counter = network(), network(), CompileCounterWithBackend(BACKEND)
compiled.compile(backend=counter, fullgraph=True)
pairs, frames = [], {}
for grid in GRIDS:
    before = counter.frame_count
    for count in (16, 2, 3, 7, 12, 16, 1):
        pairs += zip(step(eager, count, grid), step(compiled, count, grid), strict=True)
    frames[grid] = counter.frame_count - before
if SAMPLES:
    eager.eval(), compiled.eval()
    pairs += zip(samples(eager), samples(compiled), strict=True)
    for batch in (6, 3, 5):  # as in validation, where the last batch is smaller
        x, t = torch.randn(batch, 1, 8, 8), torch.rand(batch, 4, 4)
        with torch.inference_mode():
            for level_map in (t, t[:, :1, :1]):
                pairs.append((eager(x, level_map, LABEL[:batch]), compiled(x, level_map, LABEL[:batch])))
largest = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)
print(json.dumps({"frames": frames, "all": counter.frame_count, "difference": largest}))
