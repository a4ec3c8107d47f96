"""The machine that is measured, and the facts about it that belong to every figure."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

from asyncdiff.precision import Precision, auto_precision

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Machine:
    """Device to measure, and what is adapted to it.

    Attributes:
        device: device of the networks.
        output: folder of the results.
        data: real images, an .npz file or a folder; None for digits.
        small: whether networks and batches are tiny, so that a CPU runs every measurement in minutes.
        modes: whether networks are compiled, for every mode to measure.
        compile_options: arguments of torch.compile.
        trainer_options: arguments of Lightning's Trainer that put a run on the device.
    """

    device: torch.device
    output: Path
    data: Path | None = None
    small: bool = False
    modes: tuple[bool, ...] = (False, True)
    compile_options: Mapping[str, Any] = field(default_factory=dict)
    trainer_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, device: str, output: Path, data: Path | None = None) -> "Machine":
        """Return the machine with a device, "cuda" or "cpu"; on a CPU, compilation stops before code is generated."""
        if device == "cpu":
            trainer = {"accelerator": "cpu", "devices": 1}
            options = {"backend": "aot_eager"}
            return cls(torch.device("cpu"), output, data, small=True, compile_options=options, trainer_options=trainer)
        index = torch.cuda.current_device()
        trainer = {"accelerator": "gpu", "devices": [index]}
        return cls(torch.device("cuda", index), output, data, trainer_options=trainer)

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> Precision:
        """Precision of training: bf16 where the device has it."""
        return auto_precision(self.device)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions to sample in; a CPU has no TF32."""
        return ("float32", "tf32", "bf16") if self.is_gpu else ("float32", "bf16")

    @property
    def largest_time(self) -> float:
        """Seconds that repeating one piece of work may take, in which medians settle."""
        return 0.3 if self.small else 4.0

    def label(self, network: str) -> str:
        """Return the name of a network, or of the tiny one in its place."""
        return f"{network} (tiny)" if self.small else network

    def mode(self, compiled: bool) -> str:
        """Return the name of a mode."""
        backend = self.compile_options.get("backend")
        return "eager" if not compiled else f"compiled ({backend})" if backend else "compiled"

    def compile(self, network: nn.Module, compiled: bool) -> None:
        """Compile a network in place, if the mode asks for it."""
        if compiled:
            torch.compiler.reset()  # graphs of earlier networks count towards the limit of recompilations
            network.compile(**self.compile_options)


def environment(machine: Machine) -> dict[str, Any]:
    """Return the facts that belong to every figure: hardware, driver, versions, commit and date."""
    facts: dict[str, Any] = {"device": _processor()}
    if machine.is_gpu:
        properties = torch.cuda.get_device_properties(machine.device)
        facts = {
            "device": properties.name,
            "memory, GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "GPUs": torch.cuda.device_count(),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "clocks, power limit": _output(
                "nvidia-smi", "--query-gpu=clocks.max.sm,power.limit", "--format=csv,noheader"
            ),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = (
        " with changes" if _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no") else ""
    )
    versions = {"torch": torch.__version__, "lightning": lightning.__version__, "python": sys.version.split()[0]}
    host = {"CPU cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    return facts | versions | host | {"commit": f"{commit or 'unknown'}{changed}", "day": time.strftime("%Y-%m-%d")}


def _processor() -> str:
    """Return the name of the CPU."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "CPU"


def _output(*command: str) -> str:
    """Return the first line that a program prints; nothing if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.partition("\n")[0].strip() if result.returncode == 0 else ""
