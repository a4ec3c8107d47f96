"""Print as JSON what a compiled DiT computes and how often it is compiled.

A process of its own, since Dynamo cannot trace the type checks: test_dit_speed.py runs it with JAXTYPING_DISABLE=1.
"""

import json
import sys

import torch
from conftest import randomize_weights
from torch._dynamo.testing import CompileCounterWithBackend

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.networks.dit import DiT
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.shapes import UniqueLevels

OPTIONS = json.loads(sys.argv[1])
BACKEND = sys.argv[2]
LABEL = torch.arange(6)


def network() -> DiT:
    torch.manual_seed(0)
    return randomize_weights(DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, classes=10, **OPTIONS))


def draw(count: int) -> UniqueLevels:
    index = torch.randint(count, (6, 4, 4), generator=torch.Generator().manual_seed(count))
    return UniqueLevels(torch.arange(count) / max(count - 1, 1), index)


def step(net: DiT, count: int) -> list[torch.Tensor]:
    """The output and all gradients, with `count` distinct levels."""
    net.zero_grad()
    x, levels = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), draw(count)
    v = net(x, levels.values[levels.index], LABEL, unique=levels)
    v.square().mean().backward()
    return [v.detach(), *(p.grad.clone() for p in net.parameters())]


def samples(net: DiT) -> list[torch.Tensor]:
    """Images sampled with one level per image, and with levels that all differ."""
    denoiser = Denoiser(net, RectifiedFlow()).requires_grad_(False)
    options = {"seeds": range(6), "shape": (1, 8, 8), "label": LABEL}
    return [Sampler(path, steps=4)(denoiser, **options) for path in (None, AsyncPatch())]


COUNTS = (16, 2, 3, 7, 12, 16, 1)
eager, compiled, counter = network(), network(), CompileCounterWithBackend(BACKEND)
compiled.compile(backend=counter, fullgraph=True)
pairs = [pair for n in COUNTS for pair in zip(step(eager, n), step(compiled, n), strict=True)]
training = counter.frame_count
eager.eval(), compiled.eval()
pairs += zip(samples(eager), samples(compiled), strict=True)
for batch in (6, 3, 5):  # as in validation, where the last batch is smaller
    x, t = torch.randn(batch, 1, 8, 8), torch.rand(batch, 4, 4)
    with torch.inference_mode():
        for level_map in (t, t[:, :1, :1]):
            pairs.append((eager(x, level_map, LABEL[:batch]), compiled(x, level_map, LABEL[:batch])))
largest = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)
print(json.dumps({"training": training, "all": counter.frame_count, "difference": largest}))
