"""Two processes, with NCCL on two GPUs and gloo on a CPU: images per second and waits under ddp and fully_shard.

python -m benchmarks.gpu.processes ddp cuda FILE.json    # one child process, which starts the other
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asyncdiff import AsyncDiffusion
from benchmarks.gpu.fits import Noise, WaitsOfSteps, fit, trainer_precision
from benchmarks.gpu.machine import ROOT, Machine
from benchmarks.gpu.results import Finding, Goal
from benchmarks.gpu.runner import Deadline, Measurement
from benchmarks.gpu.training import LABELS, LEADING, sizes

PROCESSES, BATCH = 2, 64
WARM, COUNTED, STEPS = 10, 16, 24
IMPORTS = 20.0  # seconds that the processes take to start
LONGEST = 240  # seconds until processes that wait for each other are ended


def measurements(machine: Machine) -> Iterator[Measurement]:
    """Yield the measurements."""
    for strategy in ("ddp", "fully_shard"):
        needs = IMPORTS if not machine.is_gpu or torch.cuda.device_count() >= PROCESSES else 0
        yield Measurement(strategy, partial(two_processes, strategy, machine), needs)


def two_processes(strategy: str, machine: Machine, deadline: Deadline) -> Finding:
    """Train in two processes that this one starts."""
    if machine.is_gpu and torch.cuda.device_count() < PROCESSES:
        return Finding(note="skipped: this machine has one GPU")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        command = [sys.executable, "-m", "benchmarks.gpu.processes", strategy, machine.device.type, str(file)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST, check=False)
        if not file.is_file():
            lines = result.stderr.strip().splitlines() or ["it printed no error"]
            raise RuntimeError(f"the processes ended with code {result.returncode}: {lines[-1]}")
        found = json.loads(file.read_text())
    goals = []
    if machine.is_gpu:
        goals = [Goal(f"{strategy}: at most 1 wait per step on several GPUs", found["waits per step"], 1)]
    return Finding([found], goals)


def main(strategy: str, device: str, file: Path) -> None:
    """Train in this process and one more; the first writes what it found."""
    machine = Machine.of(device, file.parent)
    options = dict(machine.trainer_options) | {"devices": PROCESSES, "strategy": strategy}
    case = sizes(machine)[LEADING]
    batch = case.batch if machine.small else BATCH
    module = AsyncDiffusion(case.network(classes=LABELS), image_size=case.size)  # type: ignore[call-arg]
    data = Noise(case.channels, case.size, 4 * batch * PROCESSES, labels=LABELS, batch_size=batch)
    counted, precision = WaitsOfSteps(WARM, COUNTED), trainer_precision(machine)
    trainer, metrics = fit(
        module, data, file.parent, STEPS, options, callbacks=[counted], precision=precision, every=STEPS - COUNTED
    )
    if trainer.is_global_zero:
        waits: Any = counted.waits.count / (COUNTED - WARM) if machine.is_gpu else "not on this device"
        row = {"precision": precision, "processes": PROCESSES, "batch of each": batch, "waits per step": waits}
        row |= {"where": counted.waits.listed() if machine.is_gpu else ""}
        row |= {name: metrics.values[f"train/{name}"][-1] for name in ("ms_step", "images_per_second")}
        file.write_text(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
