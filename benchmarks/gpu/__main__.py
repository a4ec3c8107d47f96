"""Measure this library on a GPU with one command: correctness, speed, and a real run in the minutes left.

    python -m benchmarks.gpu --minutes 8
    python -m benchmarks.gpu --minutes 30 --parts learning --data cifar10.npz
    python -m benchmarks.gpu --only-report

Prints every result when it is known. OUTPUT/results.json is complete after every measurement, and OUTPUT/report.md is
built from it. A second call continues with what is not done. Every part has a share of the minutes. The exit code is 1
if a test of correctness failed.
"""

import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.run_lock import hold
from benchmarks.gpu.report import report
from benchmarks.gpu.results import Results
from benchmarks.gpu.runner import Deadline, Part, run_parts

TITLES = {
    "correctness": "correctness",
    "training": "training steps",
    "sampling": "sampling",
    "levels": "drawing levels, and the likelihood bound",
    "loading": "reading images",
    "profiling": "profile of training steps",
    "processes": "two processes",
    "learning": "a real run",
}
VARIABLES = {  # of the environment, before PyTorch is imported
    # The workspace that cuBLAS has on Hopper anyway; without it, PyTorch refuses deterministic matrix products.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "KINETO_LOG_LEVEL": "99",  # the profiler prints nothing
}
# Shares of the time: of a GPU, whose large networks take theirs, and of a CPU, where imports and tests are most of it.
GPU_SHARES = (1.2, 3.0, 1.2, 0.3, 0.5, 0.4, 0.3, 1.4)
CPU_SHARES = (2.0, 1.4, 0.8, 0.3, 0.4, 0.4, 1.8, 0.8)


def parts(machine: Any) -> dict[str, Part]:
    """Return all parts by name, in their order."""
    from benchmarks.gpu import correctness, learning, levels, loading, processes, profiling, sampling, training

    modules = (correctness, training, sampling, levels, loading, profiling, processes, learning)
    shares = CPU_SHARES if machine.small else GPU_SHARES
    return {
        name: Part(TITLES[name], share, module.measurements, is_test=module is correctness)
        for name, share, module in zip(TITLES, shares, modules, strict=True)
    }


def write_report(results: Results) -> None:
    """Write OUTPUT/report.md."""
    write_atomically(results.file.with_name("report.md"), [report(results.content, TITLES).encode()])


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options, without importing PyTorch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="minutes for all parts (default: 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="device (default: cuda if there is one)")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="output folder (default: runs/gpu)")
    parser.add_argument("--parts", nargs="+", choices=TITLES, default=list(TITLES), help="parts to run (default: all)")
    parser.add_argument("--data", type=Path, help="images to train on: .npz file or folder (default: digits)")
    parser.add_argument("--only-report", action="store_true", help="only write the report of an earlier call again")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be positive, got {options.minutes:g}: use 8, for example")
    if options.data is not None and not options.data.exists():
        parser.error(f"--data must be an .npz file or a folder, got {options.data}, which is missing: check the path")
    if options.only_report and not (options.output / "results.json").is_file():
        parser.error(f"--output {options.output} has no results.json: run the command without --only-report first")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = options_of(arguments)
    deadline = Deadline(60 * options.minutes)
    if options.only_report:
        write_report(Results(options.output))
        return 0
    start = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {line}", flush=True)

    os.environ |= {name: os.environ.get(name, value) for name, value in VARIABLES.items()}
    import torch

    from benchmarks.gpu.machine import Machine, environment

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda needs a GPU, got none that PyTorch can use: check nvidia-smi, or use cpu", file=sys.stderr)
        return 2
    if device == "cpu":
        torch.set_num_threads(1)  # the fastest for networks as small as those that a CPU gets
    quiet()
    with hold(options.output, "being measured"):
        machine, results = Machine.of(device, options.output, options.data), Results(options.output)
        facts = environment(machine)
        results.begin(facts)
        say(", ".join(f"{name} {value}" for name, value in facts.items()))
        chosen = {name: part for name, part in parts(machine).items() if name in options.parts}
        run_parts(chosen, machine, results, deadline, say=say, written=lambda: write_report(results))
    say(f"report: {results.file.with_name('report.md')}")
    for record in results.wrong:
        say(f"FAILED: {record['part']}, {record['name']} {record['note']}")
    return 1 if results.wrong else 0


def quiet() -> None:
    """Hide messages that say nothing about a measurement."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
