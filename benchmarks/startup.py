"""CPU seconds (user + system) that commands take to start, each the median of five interleaved runs.

python benchmarks/startup.py [REPEATS]
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from asyncdiff import AsyncDiffusion
from asyncdiff.networks import DiT
from asyncdiff.sampling import Sampler

ROOT = Path(__file__).resolve().parents[1]
DIGITS = """
data: {class_path: datamodules.Digits, init_args: {batch_size: 32}}
model:
  network:
    class_path: asyncdiff.networks.DiT
    init_args: {channels: 1, patch_size: 2, dim: 32, depth: 1, heads: 2, classes: 10}
  image_size: 8
trainer: {accelerator: cpu, max_steps: 1, limit_val_batches: 0, enable_progress_bar: false, logger: false}
"""


def save_run(folder: Path) -> None:
    """Write a checkpoint of an untrained network for 8x8 images, an experiment that trains it for one step, a photo."""
    import lightning

    network = DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, classes=10)
    model = AsyncDiffusion(network, sampler=Sampler(steps=2), image_size=8)
    checkpoint = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": lightning.__version__}
    checkpoint["state_dict"] = model.state_dict()
    model.on_save_checkpoint(checkpoint)
    (folder / "checkpoints").mkdir()
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    (folder / "digits.yaml").write_text(DIGITS)
    Image.effect_noise((8, 8), 64).save(folder / "photo.png")


def cpu_seconds(argv: list[str], folder: str) -> float:
    """Run a command and return the CPU seconds of its process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        usage = os.wait4(p.pid, 0)[2]
        p.returncode = 0
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure all commands and print a Markdown table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    asyncdiff, cpu = [sys.executable, "-m", "asyncdiff"], ["--device", "cpu"]
    commands = {
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "asyncdiff --help": [*asyncdiff, "--help"],
        "asyncdiff sample --help": [*asyncdiff, "sample", "--help"],
        "asyncdiff sample, refused": [*asyncdiff, "sample", ".", "--step", "7"],
        "asyncdiff sample, one image": [*asyncdiff, "sample", ".", "--seeds", "0", *cpu],
        "asyncdiff inpaint, one image": [*asyncdiff, "inpaint", ".", "--image", "photo.png", "--seeds", "0", *cpu],
        "train.py fit, first step": [sys.executable, str(ROOT / "train.py"), "fit", "--config", "digits.yaml"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        save_run(Path(folder))
        for number in range(repeats + 1):  # the first round warms the file cache
            for name, argv in commands.items():
                seconds = cpu_seconds([*argv, *fit_folder(name, number)], folder)
                if number:
                    times[name].append(seconds)
    print("| command | CPU s | relative to import torch |\n|---|---|---|")
    base = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.2f} | {median / base:.2f} |")


def fit_folder(name: str, number: int) -> list[str]:
    """Return the option that gives every fit its own run directory."""
    return ["--trainer.default_root_dir", f"fit{number}"] if "fit" in name else []


if __name__ == "__main__":
    main()
