"""Compare shared, independent and controlled noise levels on handwritten digits, over several seeds.

    python -m benchmarks.digits_levels --seeds 0 1 2 --parallel 2

trains experiments/digits_dit_{shared,independent,async}.yaml, except for finished runs, and prints a Markdown table:
Fréchet distances in the features of a small digits classifier, and its accuracy on images whose right half was
inpainted without labels. Real held-out images and a mean-filled right half serve as references.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from asyncdiff import DiffusionModel
from asyncdiff.evaluation import FrechetDistance, TrainedClassifier
from asyncdiff.noise.masks import Half
from datamodules import Digits

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("shared", "independent", "async")


class Judge:
    """Evaluator: a classifier of digits, the training split as reference, and the held-out split to inpaint."""

    def __init__(self) -> None:
        data = Digits()
        self.train, self.held_out = data.dataset("train"), data.dataset("val")
        self.images, self.labels = (
            torch.cat(p) for p in zip(*((b["image"], b["label"]) for b in data.images("val", 64)), strict=True)
        )
        self.classifier = TrainedClassifier(1, 10, name="digits_classifier")
        self.classifier.prepare(data.images("train", 64))
        self.metric = FrechetDistance(self.classifier)
        self.mean = torch.zeros(1, 8, 8)
        for batch in data.images("train", 64):
            self.metric.update(batch["image"], real=True)
            self.mean += batch["image"].sum(0) / len(self.train)

    def frechet(self, images: Tensor) -> float:
        """Return the Fréchet distance to the training split."""
        self.metric.reset()
        self.metric.update(images, real=False)
        return self.metric.compute().item()

    def accuracy(self, images: Tensor) -> float:
        """Return the accuracy of the classifier on inpainted held-out images."""
        return self.classifier.accuracy(images, self.labels)

    def references(self) -> dict[str, float]:
        """Return the scores of real images and of images with a mean-filled right half."""
        filled = torch.where(Half()(8, 8), self.images, self.mean)
        return {
            "real_frechet": self.frechet(self.images),
            "real_accuracy": self.accuracy(self.images),
            "filled_frechet": self.frechet(filled),
            "filled_accuracy": self.accuracy(filled),
        }

    def evaluate(self, model: DiffusionModel) -> dict[str, float]:
        """Return the scores of images generated with and without labels, and of unconditional inpaintings."""
        seeds = range(len(self.images))
        inpainted = model.inpaint(self.images, Half()(8, 8), seeds=seeds)
        return {
            "with labels": self.frechet(model.generate(seeds, [i % 10 for i in seeds])),
            "without": self.frechet(model.generate(seeds)),
            "inpainted": self.frechet(inpainted),
            "class kept": self.accuracy(inpainted),
        }


def train(name: str, files: Sequence[str], seed: int, out: Path, options: list[str], threads: int) -> Path:
    """Return the last checkpoint of a run with these files of experiments/, after training it unless it is finished."""
    run = out / f"{name}_{seed}"
    done = run / "finished"
    if not done.exists():
        command = [sys.executable, "train.py", "fit"]
        command += [arg for file in files for arg in ("--config", f"experiments/{file}.yaml")]
        command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(run)]
        command += ["--trainer.enable_progress_bar", "false", *options]
        if (run / "checkpoints" / "last.ckpt").exists():
            command += ["--ckpt_path", "last"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        done.touch()
    return run / "checkpoints" / "last.ckpt"


def row(name: str, results: list[dict[str, float]]) -> str:
    """Return a table row with the mean and standard deviation over the seeds."""
    cells = []
    for key in results[0]:
        values = [r[key] for r in results]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.2f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


def train_all(
    layers: Mapping[str, Sequence[str]], description: str | None, out: Path
) -> tuple[dict[tuple[str, int], Path], list[int]]:
    """Return the checkpoints of all variants and seeds, and the seeds; runs that are not finished are trained.

    Args:
        layers: files in experiments/ of every variant.
        description: description of the command line.
        out: default folder of the runs.

    Returns:
        Checkpoints by (variant, seed), and the seeds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--out", type=Path, default=out)
    arguments, options = parser.parse_known_args()
    out = arguments.out.resolve()
    threads = max(1, (os.cpu_count() or 1) // arguments.parallel)
    trials = [(variant, seed) for seed in arguments.seeds for variant in layers]

    def checkpoint(trial: tuple[str, int]) -> Path:
        variant, seed = trial
        return train(variant, layers[variant], seed, out, options, threads)

    with ThreadPoolExecutor(arguments.parallel) as pool:
        return dict(zip(trials, pool.map(checkpoint, trials), strict=True)), arguments.seeds


def main() -> None:
    """Train, evaluate and print the table."""
    layers = {variant: [f"digits_dit_{variant}"] for variant in VARIANTS}
    files, seeds = train_all(layers, __doc__, Path("runs/digits_levels"))
    judge = Judge()
    references = judge.references()
    print("| levels | with labels | without | inpainted | class kept |\n|---|---|---|---|---|")
    for variant in VARIANTS:
        models = [DiffusionModel.load(files[variant, seed]) for seed in seeds]
        print(row(variant, [judge.evaluate(model) for model in models]), flush=True)
    print(f"| real held-out images | {references['real_frechet']:.2f} | | | {references['real_accuracy']:.2f} |")
    filled = f"{references['filled_frechet']:.2f} | {references['filled_accuracy']:.2f}"
    print(f"| right half filled with the mean | | | {filled} |")


if __name__ == "__main__":
    main()
