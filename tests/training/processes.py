"""Run the scripts of this folder that start several processes."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_script(name: str, *arguments: object) -> None:
    """Run a script on the CPU with one thread per process, and check that it succeeds."""
    paths = {"PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
