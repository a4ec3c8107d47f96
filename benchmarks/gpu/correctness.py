"""Correctness: CPU against GPU for one flow of each kind, waits of the host, repeated and resumed runs bit for bit."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncdiff.callbacks import EMA
from asyncdiff.noise import AsyncPatch
from asyncdiff.precision import computing_in
from asyncdiff.sampling import DDIM, Adaptive, ClassifierFree, ImageSampler, InputGuidance, Multistep, Sampler, engine
from asyncdiff.training import OptimizerSettings
from benchmarks.gpu.fits import WaitsOfSteps, fit, trainer_precision
from benchmarks.gpu.flows import CLASSES, SHAPE, STEPS, Flow, build, difference, flows, images, known_pixels
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.results import Finding, Goal
from benchmarks.gpu.runner import Deadline, Measurement
from benchmarks.gpu.timing import Waits, counted_waits
from datamodules import Digits

CPU = torch.device("cpu")
WARM, COUNTED = 6, 14  # steps of a fit before the host's waits are counted, and when that ends
HALF, ALL = 4, 8  # steps of a run that is interrupted, and of the whole run
NO_GPU = "not on this device: waits exist on GPUs only"


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the tests."""
    for name, flow in flows().items():
        yield Measurement(name, partial(compare, flow, machine))
    for kind in ("DiT", "U-Net"):
        yield Measurement(f"waits of a fit, {kind}", partial(waits_of_a_fit, kind, machine))
    for name, (sampler, expected) in walks().items():
        yield Measurement(f"waits of a walk, {name}", partial(waits_of_a_walk, sampler, expected, machine))
    for kind in ("DiT", "U-Net"):
        yield Measurement(f"two runs, {kind}", partial(repeat_a_run, kind, machine))
    yield Measurement("a resumed run", partial(resume_a_run, machine))


def compare(flow: Flow, machine: Machine, deadline: Deadline) -> Finding:
    """Compare the device with the CPU in float32 without TF32, and bfloat16 with both."""
    with computing_in("float32", CPU):
        expected = flow.run(CPU)
    with computing_in("float32", machine.device):
        exact, worst = difference(flow.run(machine.device), expected)
    with computing_in("bf16", machine.device):
        rounded, _ = difference(flow.run(machine.device), expected)
    row = {"precision": "float32, no TF32", "difference": exact, "tolerance": flow.tolerance, "largest in": worst}
    row["difference in bf16"] = rounded
    return Finding([row], passed=exact <= flow.tolerance)


# Waits


def waits_of_a_fit(kind: str, machine: Machine, deadline: Deadline) -> Finding:
    """Count the waits of training steps with the default callbacks and the progress bar."""
    counted = WaitsOfSteps(WARM, COUNTED)
    with tempfile.TemporaryDirectory() as folder:
        run(
            kind,
            machine,
            Path(folder),
            COUNTED + 1,
            bar=True,
            callbacks=[counted],
            precision=trainer_precision(machine),
        )
    return judge_waits(counted.waits, COUNTED - WARM, "step", 0, machine, trainer_precision(machine))


def walks() -> dict[str, tuple[ImageSampler, int]]:
    """Return samplers by name, with the waits per step that each may have."""
    return {
        "DDIM(0.25)": (Sampler(solver=DDIM(0.25), steps=STEPS), 0),
        "async, Multistep": (Sampler(AsyncPatch(), Multistep(), STEPS), 0),
        "guided": (Sampler(AsyncPatch(), steps=STEPS, guidance=[ClassifierFree(2.0), InputGuidance(1.0)]), 0),
        "adaptive": (Adaptive(steps=STEPS), 1),
    }


def waits_of_a_walk(sampler: ImageSampler, allowed: int, machine: Machine, deadline: Deadline) -> Finding:
    """Count the waits of the second walk of a sampler that inpaints, from its first to its last state."""
    denoiser = build().to(machine.device).eval().denoiser
    image, known = images()[:3], known_pixels().expand(3, -1, -1)
    batch = engine.ImageBatch(range(3), [0, 1, 2], image.to(machine.device), known.to(machine.device))
    waits, steps = Waits(), 0
    for _ in range(2):
        states, steps = engine.frames(denoiser, sampler, batch, SHAPE), 0
        with torch.no_grad():
            frame = next(states)
            with counted_waits(machine.device) as waits:
                while frame.s > 1 / STEPS + 1e-6:  # the last step ends with known pixels that are put back
                    frame, steps = next(states), steps + 1
                    waits.step = steps
            for _ in states:
                pass
    return judge_waits(waits, max(steps, 1), "evaluation", allowed, machine)


def judge_waits(
    waits: Waits, count: int, unit: str, allowed: int, machine: Machine, precision: str = "float32"
) -> Finding:
    """Return the waits per step or evaluation, compared with the number that is allowed."""
    if not machine.is_gpu:
        return Finding(note=NO_GPU)
    each = waits.count / count
    goal = Goal(f"at most {allowed} waits per {unit}", each, allowed)
    row = {"precision": precision, f"waits per {unit}": each, "allowed": allowed, "where": waits.listed()}
    return Finding([row], [goal], passed=goal.met, details={"places": dict(waits.places)})


# Bit for bit


def repeat_a_run(kind: str, machine: Machine, deadline: Deadline) -> Finding:
    """Train twice from the same seed, with deterministic algorithms and with the default ones."""
    differences = {}
    for name, context in (("deterministic", deterministic), ("default", nullcontext)):
        with context(), tempfile.TemporaryDirectory() as folder:
            first, second = (run(kind, machine, Path(folder, str(number)), ALL)[0] for number in range(2))
        differences[name] = changed(first, second)
    rows = [{"precision": "float32", "algorithms": name, "values that differ": n} for name, n in differences.items()]
    return Finding(rows, passed=differences["deterministic"] == 0)


def resume_a_run(machine: Machine, deadline: Deadline) -> Finding:
    """Interrupt a run, resume it from its checkpoint, and compare weights and EMA with those of the whole run."""
    with deterministic(), tempfile.TemporaryDirectory() as folder:
        whole, _ = run("DiT", machine, Path(folder, "whole"), ALL)
        _, trainer = run("DiT", machine, Path(folder, "part"), HALF)
        checkpoint = Path(folder, "part", "last.ckpt")
        trainer.save_checkpoint(checkpoint)
        resumed, _ = run("DiT", machine, Path(folder, "part"), ALL, resume=checkpoint)
    count = changed(whole, resumed)
    return Finding(
        [{"precision": "float32", "algorithms": "deterministic", "values that differ": count}], passed=not count
    )


def run(kind: str, machine: Machine, folder: Path, steps: int, **options: Any) -> tuple[dict[str, Tensor], Any]:
    """Train a small model on digits; return its weights and their EMA on the CPU, and the trainer."""
    module = build(kind, optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=2))
    assert module.classes == CLASSES
    trainer, _ = fit(module, Digits(batch_size=16), folder, steps, machine.trainer_options, **options)
    average = next(c for c in trainer.callbacks if isinstance(c, EMA)).average or {}
    weights = {name: p.detach().cpu() for name, p in module.named_parameters()}
    return weights | {f"ema.{name}": value.cpu() for name, value in average.items()}, trainer


def changed(first: dict[str, Tensor], second: dict[str, Tensor]) -> int:
    """Return how many values of two runs differ in any bit."""
    assert first.keys() == second.keys()
    return sum(int((first[name] != second[name]).sum()) for name in first)


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms, or raise an error where there is none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
