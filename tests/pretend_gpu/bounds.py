"""Flows that bound likelihoods, on any device."""

from collections.abc import Callable
from typing import Any

import torch
from pretend_gpu.watch import Watch
from small_runs import randomize_weights
from torch import Tensor

from asyncdiff.denoising import Denoiser, bound, discrete_bound
from asyncdiff.networks import DiT, UNet
from asyncdiff.noise import AsyncPatch, FluxProgress, Ordered, Raster, RectifiedFlow
from asyncdiff.randomness import per_image

Flow = Callable[[torch.device, Watch], dict[str, Any]]


def images(count: int = 3) -> Tensor:
    """Return 8-bit images in [-1, 1]."""
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1


def network(kind: type) -> torch.nn.Module:
    """Return a small network of a class with random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"patch_size": 2, "dim": 16, "depth": 1, "heads": 2}
    if kind is UNet:
        sizes = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_dim": 8, "level_patch_size": 2}
    return randomize_weights(kind(channels=1, classes=3, **sizes)).eval()


def flow_of(estimate: Callable[..., Any], kind: type = DiT, known: bool = False, **options: Any) -> Flow:
    """Return the flow of one estimate; a first one, forgotten, copies the constants of the grid."""
    left = torch.zeros(3, 8, 8, dtype=torch.bool)
    left[:, :, :4] = True

    def flow(device: torch.device, watch: Watch) -> dict[str, Any]:
        denoiser, x, label = Denoiser(network(kind), RectifiedFlow()).to(device), images().to(device), torch.arange(3)
        given: dict[str, Any] = {"label": label.to(device), **options}
        if known:
            given["known"] = left.to(device)
        calls = 0

        def note(*_: Any) -> None:
            nonlocal calls
            calls += 1
            watch.step()

        for _ in range(2):
            watch.clear()
            hook, calls = denoiser.register_forward_pre_hook(note), 0
            result = estimate(denoiser, x, generator=per_image(range(3)), **given)
            hook.remove()
        return {"evaluations": calls, "total": result.total, "per_patch": result.per_patch, "error": result.by_level}

    return flow


def bounds() -> dict[str, Flow]:
    """Return flows of the two bounds by name."""
    return {
        "bound": flow_of(bound, points=6),
        "bound, U-Net": flow_of(bound, UNet, points=6),
        "bound along AsyncPatch, known pixels": flow_of(bound, points=6, path=AsyncPatch(), known=True),
        "bound with FluxProgress": flow_of(bound, points=6, path=AsyncPatch(), progress_sampler=FluxProgress()),
        "bound along an order": flow_of(bound, points=6, path=Ordered(Raster(), 0.5)),
        "discrete bound": flow_of(discrete_bound, steps=6),
        "discrete bound, known pixels": flow_of(discrete_bound, steps=6, path=AsyncPatch(), known=True),
    }
