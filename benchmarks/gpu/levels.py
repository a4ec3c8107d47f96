"""Draws of level maps in training, and the likelihood bound: time and operators."""

from collections.abc import Iterator
from functools import partial

import torch

from asyncdiff.denoising.likelihood import GaussianDecoder, bound
from asyncdiff.noise import AsyncPatch, FluxProgress, ProgressSampler, UniformProgress
from asyncdiff.precision import full_float32
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding
from benchmarks.gpu.runner import Deadline, Measurement
from benchmarks.gpu.sampling import denoiser_of, level_maps
from benchmarks.gpu.timing import medians, operators
from benchmarks.gpu.training import LEADING, sizes
from benchmarks.levels_speed import SAMPLERS

BATCH, GRID = 256, (16, 16)
POINTS, IMAGES = 8, 16  # of the bound


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the measurements."""
    yield Measurement("draws", partial(draws, machine))
    for progress_sampler in (FluxProgress(), UniformProgress()):
        name = f"likelihood bound, {type(progress_sampler).__name__}"
        yield Measurement(name, partial(likelihood_bound, progress_sampler, machine))


def draws(machine: Machine, deadline: Deadline) -> Finding:
    """Measure one draw of every level sampler for a batch, as a training step makes it."""
    batch = 32 if machine.small else BATCH
    runs = {name: partial(levels, batch, GRID, device=machine.device) for name, levels in SAMPLERS.items()}
    times = medians(runs, machine.device, min(machine.largest_time, deadline.left))
    common = {"precision": "float32", "batch": batch, "grid": "{}x{}".format(*GRID)}
    return Finding(
        [
            {"levels": name} | common | seconds.columns() | {"operators": operators(runs[name])}
            for name, seconds in times.items()
        ]
    )


def likelihood_bound(progress_sampler: ProgressSampler, machine: Machine, deadline: Deadline) -> Finding:
    """Measure the bound along an AsyncPatch path, compared with its evaluations of the network."""
    denoiser, case = denoiser_of(machine, compiled=False), sizes(machine)[LEADING]
    images = 2 if machine.small else IMAGES
    x = torch.randn(images, case.channels, case.size, case.size, device=machine.device)
    t = level_maps(images, denoiser.grid((case.size, case.size)), machine.device)["all different"]
    options = {"points": POINTS, "decoder": GaussianDecoder(), "progress_sampler": progress_sampler}

    @torch.no_grad()
    def evaluate() -> None:
        for _ in range(POINTS):
            denoiser(x, t)

    runs = {"evaluations alone": evaluate, "bound": partial(bound, denoiser, x, AsyncPatch(), **options)}
    with full_float32(machine.device):
        times = medians(runs, machine.device, min(machine.largest_time / 2, deadline.left))
        counts = {name: operators(run) for name, run in runs.items()}
    alone = times["evaluations alone"].median
    rows = [
        {"precision": "float32", "images": images, "points": POINTS, "what": name, **seconds.columns()}
        | {"ratio": seconds.median / alone, "operators": counts[name]}
        for name, seconds in times.items()
    ]
    return Finding(rows)
