"""Training steps: one level per image against level maps, in this library's way and naively; eager and compiled."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from asyncdiff import AsyncDiffusion
from asyncdiff.callbacks.flops import peak_flops, training_flops
from asyncdiff.shapes import IndexedLevels
from benchmarks.conditioning import CASES, NAIVE, ONE, TABLE, Bench, Case, dit
from benchmarks.gpu.fits import Noise, fit, trainer_precision
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding, Goal
from benchmarks.gpu.runner import Deadline, Measurement, free_memory
from benchmarks.gpu.timing import largest, medians, peak_memory

RATIO = 1.05  # goal: time of a step with maps, relative to one level per image, compiled
MFU = {"DiT-S/2": 22, "DiT-B/2": 38, "DiT-XL/2": 45}  # goals in percent, compiled
LEADING = "DiT-B/2"  # network of the measurements that are made with one network only
BATCHES = {
    "DiT-B/2": (256, 128, 64, 32),
    "DiT-S/2": (512, 256, 128, 64),
    "DiT-XL/2": (256, 128, 64, 32, 16),
    "U-Net 60M": (128, 64, 32, 16, 8),
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
COMPILATION = 20.0  # seconds that compiling one of the networks takes at least
LABELS, STEPS_OF_A_FIT = 10, 30


def sizes(machine: Machine) -> dict[str, Case]:
    """Return the networks to train by name: latents of 4x32x32, and 64x64 pixels for the U-Net."""
    if machine.small:
        tiny = {"DiT-B/2": (64, 2, 2), "DiT-S/2": (32, 1, 2), "DiT-XL/2": (96, 2, 4)}
        cases = {name: Case(dit(2, *size, 4), 4, 8, 4) for name, size in tiny.items()}
        options = {"multipliers": [1, 2], "blocks": 1, "middle_blocks": 2, "attention": [1], "head_dim": 16}
        unet = partial(CASES["unet_60m"].network, width=16, **options)
        return cases | {"U-Net 60M": Case(unet, 3, 16, 2)}
    return {
        "DiT-B/2": CASES["dit_b2"],
        "DiT-S/2": Case(dit(2, 384, 12, 6, 4), 4, 32, 256),
        "DiT-XL/2": CASES["dit_xl2"],
        "U-Net 60M": CASES["unet_60m"],
    }


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the measurements: quick ones and those with goals first."""
    for compiled in machine.modes:
        kinds = (ONE, TABLE) if compiled else (ONE, TABLE, NAIVE)
        for name in BATCHES:
            run, needs = partial(steps, name, kinds, compiled, machine), COMPILATION * (compiled and not machine.small)
            yield Measurement(f"{machine.label(name)}, {machine.mode(compiled)}", run, needs)
    for compiled in machine.modes:
        run = partial(trainer_steps, compiled, machine)
        yield Measurement(f"{machine.label(LEADING)}, Trainer, {machine.mode(compiled)}", run)
    for compiled in filter(None, machine.modes):
        run = partial(steps, LEADING, (ONE, NAIVE), compiled, machine)
        yield Measurement(f"{machine.label(LEADING)}, naive, {machine.mode(compiled)}", run)


def bench_of(machine: Machine, case: Case, compiled: bool = False) -> Bench:
    """Return the networks of a case in the precision of training."""
    bench = Bench(case, machine.device, DTYPES[machine.precision], None)
    for network in bench.networks.values():
        machine.compile(network, compiled)
    return bench


def batch_that_fits(name: str, kind: str, machine: Machine) -> int:
    """Return the largest batch size of the list for which an eager step of a variant fits into memory."""
    case = sizes(machine)[name]
    if machine.small:
        return case.batch

    def step(batch: int) -> None:
        bench_of(machine, replace(case, batch=batch)).step(kind)

    batch = largest(BATCHES[name], step)
    free_memory()
    return batch


def steps(name: str, kinds: Sequence[str], compiled: bool, machine: Machine, deadline: Deadline) -> Finding:
    """Measure the training steps of a network: levels, noise, forward and backward pass, AdamW."""
    batch = batch_that_fits(name, TABLE, machine)
    bench = bench_of(machine, replace(sizes(machine)[name], batch=batch), compiled)
    runs = {kind: partial(bench.step, kind) for kind in kinds}
    times = medians(runs, machine.device, min(machine.largest_time, deadline.left))
    if ONE not in times:
        raise torch.OutOfMemoryError(f"{name} with {batch} images and its naive copy need more memory")
    one = IndexedLevels.per_image(torch.rand(batch, device=machine.device))
    flops = training_flops(bench.networks[ONE], (bench.x, one), {})
    peak = peak_flops(machine.device, {"bf16": "bf16", "float32": "32"}[machine.precision])
    rows, goals = [], []
    for kind, seconds in times.items():
        row = {"precision": machine.precision, "batch": batch, "levels": kind, **seconds.columns()}
        row |= {"ratio": seconds.median / times[ONE].median, "images/s": batch / seconds.median}
        row["MFU, %"] = 100 * flops / seconds.median / peak if flops and peak else "unknown"
        rows.append(row | peak_memory(runs[kind], machine.device))
    if compiled and not machine.small and TABLE in times:
        maps = rows[list(times).index(TABLE)]
        goals.append(Goal(f"{name}: maps at most {RATIO} of one level", maps["ratio"], RATIO))
        if name in MFU and peak:
            goals.append(Goal(f"{name}: MFU at least {MFU[name]} %", maps["MFU, %"], MFU[name], at_least=True))
    missing = [kind for kind in kinds if kind not in times]
    return Finding(rows, goals, note=f"out of memory: {', '.join(missing)}" if missing else "")


def trainer_steps(compiled: bool, machine: Machine, deadline: Deadline) -> Finding:
    """Measure a run of the Trainer with EMA, guard, clipping and the default callbacks, on data in memory."""
    case, batch = sizes(machine)[LEADING], batch_that_fits(LEADING, TABLE, machine)
    network = case.network(classes=LABELS)  # type: ignore[call-arg]
    machine.compile(network, compiled)
    module = AsyncDiffusion(network, image_size=case.size)
    data = Noise(case.channels, case.size, 4 * batch, labels=LABELS, batch_size=batch)
    count, precision = (12 if machine.small else STEPS_OF_A_FIT), trainer_precision(machine)
    with tempfile.TemporaryDirectory() as folder:
        _, metrics = fit(
            module, data, Path(folder), count, machine.trainer_options, precision=precision, bar=True, every=count // 3
        )
    names = ("ms_step", "ms_data", "ms_forward", "ms_backward", "ms_optimizer", "images_per_second", "mfu")
    last = {name: metrics.values[f"train/{name}"][-1] for name in names if f"train/{name}" in metrics.values}
    return Finding([{"precision": precision, "batch": batch, "levels": TABLE, **last}])
