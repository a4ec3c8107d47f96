"""Network evaluations per second while sampling, and what a walk costs beside its evaluations."""

from collections.abc import Iterator
from functools import partial

import torch

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.precision import Precision, computing_in
from asyncdiff.sampling import DDIM, Sampler, generate
from asyncdiff.shapes import IndexedLevels
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding
from benchmarks.gpu.runner import Deadline, Measurement
from benchmarks.gpu.timing import medians, peak_memory
from benchmarks.gpu.training import LEADING, sizes

BATCHES, SMALL_BATCHES = (1, 4, 64, 256), (1, 4, 8, 16)
WALKED = slice(1, 3)  # batch sizes of the walks
STEPS = 50


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the measurements: the precision that a GPU is used in first."""
    for compiled in machine.modes:
        mode, label = machine.mode(compiled), machine.label(LEADING)
        for precision in reversed(machine.precisions):
            run = partial(evaluations, precision, compiled, machine)
            yield Measurement(f"{label}, {precision}, {mode}", run)
        for batch in batches(machine)[WALKED]:
            run = partial(walk, batch, compiled, machine)
            yield Measurement(f"{label}, walk of {STEPS} steps, {batch} images, {mode}", run)


def batches(machine: Machine) -> tuple[int, ...]:
    """Return the batch sizes to sample with."""
    return SMALL_BATCHES if machine.small else BATCHES


def denoiser_of(machine: Machine, compiled: bool) -> Denoiser:
    """Return the network to sample with."""
    torch.manual_seed(0)
    network = sizes(machine)[LEADING].network().to(machine.device).eval()
    machine.compile(network, compiled)
    return Denoiser(network, RectifiedFlow())


def level_maps(batch: int, grid: tuple[int, int], device: torch.device) -> dict[str, IndexedLevels]:
    """Return level maps whose distinct levels are known, as samplers have them."""
    index = torch.zeros((batch, *grid), dtype=torch.int64)
    halves = index.clone()
    halves[:, :, grid[1] // 2 :] = 1
    different = torch.arange(index.numel()).view(index.shape)
    maps = {
        "one level": (torch.full((1,), 0.7), index[:, :1, :1]),
        "two levels": (torch.tensor([0.0, 0.7]), halves),
        "all different": (torch.rand(index.numel()), different),
    }
    return {name: IndexedLevels(values.to(device), index.to(device)) for name, (values, index) in maps.items()}


@torch.no_grad()
def evaluations(precision: Precision, compiled: bool, machine: Machine, deadline: Deadline) -> Finding:
    """Measure evaluations of the network at several batch sizes and level maps."""
    denoiser, case, rows = denoiser_of(machine, compiled), sizes(machine)[LEADING], []
    with computing_in(precision, machine.device):
        for batch in batches(machine):
            x = torch.randn(batch, case.channels, case.size, case.size, device=machine.device)
            maps = level_maps(batch, denoiser.grid((case.size, case.size)), machine.device)
            runs = {name: partial(denoiser, x, t) for name, t in maps.items()}
            for name, seconds in medians(runs, machine.device, min(machine.largest_time / 2, deadline.left)).items():
                row = {"precision": precision, "batch": batch, "levels": name, **seconds.columns()}
                row["evaluations/s"] = batch / seconds.median
                rows.append(row | peak_memory(runs[name], machine.device))
    return Finding(rows)


@torch.no_grad()
def walk(batch: int, compiled: bool, machine: Machine, deadline: Deadline) -> Finding:
    """Compare a walk of DDIM(0.25) from seeds to images with as many evaluations of the network alone."""
    denoiser, case = denoiser_of(machine, compiled), sizes(machine)[LEADING]
    shape = (case.channels, case.size, case.size)
    x = torch.randn(batch, *shape, device=machine.device)
    t = level_maps(batch, denoiser.grid(shape[1:]), machine.device)["one level"]
    sampler = Sampler(solver=DDIM(0.25), steps=STEPS)

    def evaluate() -> None:
        for _ in range(STEPS):
            denoiser(x, t)

    runs = {
        "evaluations alone": evaluate,
        "walk": partial(generate, denoiser, sampler, seeds=range(batch), shape=shape, batch_size=batch),
    }
    with computing_in(machine.precision, machine.device):
        times = medians(runs, machine.device, min(machine.largest_time, deadline.left), most=10)
    alone = times["evaluations alone"].median
    rows = [
        {"precision": machine.precision, "batch": batch, "what": name, **seconds.columns()}
        | {"ratio": seconds.median / alone, "images/s": batch / seconds.median}
        for name, seconds in times.items()
    ]
    return Finding(rows)
