"""Print as JSON what a compiled U-Net computes and how often it is compiled.

A process of its own, since Dynamo cannot trace the type checks: test_unet.py runs it with JAXTYPING_DISABLE=1.
"""

import json
import sys

import torch
from conftest import randomize_weights
from torch._dynamo.testing import CompileCounterWithBackend

from asyncdiff.networks.unet import UNet
from asyncdiff.shapes import UniqueLevels

OPTIONS, BACKEND, GRIDS = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
SMALL = {"channels": 1, "width": 8, "multipliers": [1, 2, 3], "blocks": 1, "attention": [1], "head_dim": 4}


def network() -> UNet:
    torch.manual_seed(0)
    return randomize_weights(UNet(**{**SMALL, **OPTIONS}, classes=10))


def draw(count: int, grid: int) -> UniqueLevels:
    index = torch.randint(count, (2, grid, grid), generator=torch.Generator().manual_seed(count))
    return UniqueLevels(torch.arange(count) / max(count - 1, 1), index)


def step(net: UNet, count: int, grid: int) -> list[torch.Tensor]:
    """The output and all gradients, with `count` distinct levels."""
    net.zero_grad()
    x, levels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), draw(count, grid)
    v = net(x, levels.values[levels.index], torch.tensor([3, 10]), unique=levels)
    v.square().mean().backward()
    return [v.detach(), *(p.grad.clone() for p in net.parameters())]


eager, compiled, counter = network(), network(), CompileCounterWithBackend(BACKEND)
compiled.compile(backend=counter, fullgraph=True)
frames, largest = {}, 0.0
for grid in GRIDS:
    before = counter.frame_count
    for count in (16, 2, 3, 7, 12, 16, 1):
        for a, b in zip(step(eager, count, grid), step(compiled, count, grid), strict=True):
            largest = max(largest, float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)))
    frames[grid] = counter.frame_count - before
print(json.dumps({"frames": frames, "difference": largest}))
