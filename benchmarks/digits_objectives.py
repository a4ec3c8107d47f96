"""Compare velocity, sigmoid and likelihood objectives on handwritten digits, over several seeds.

    python -m benchmarks.digits_objectives --seeds 0 1 2 --parallel 2

trains experiments/digits_dit_async.yaml with each of the layers experiments/objectives/*.yaml, except for finished
runs, and prints a Markdown table: class-conditional bits per dimension of held-out digits along synchronous and
AsyncPatch paths, the path gap, and the Fréchet distances and class accuracies of `benchmarks.digits_levels`.
"""

from pathlib import Path

import torch

from asyncdiff import DiffusionModel
from asyncdiff.denoising.likelihood import CategoricalDecoder
from asyncdiff.evaluation.likelihood_by_path import STANDARD_PATHS, PathLikelihoodEvaluator
from benchmarks.digits_levels import Judge, row, train_all
from datamodules import Digits

OBJECTIVES = ("velocity", "sigmoid", "elbo", "elbo_uniform")


def bits(model: DiffusionModel, judge: Judge) -> dict[str, float]:
    """Return the mean bound on held-out digits along two paths, and the path gap over all four paths."""
    bounds = PathLikelihoodEvaluator(STANDARD_PATHS, points=32, decoder=CategoricalDecoder(Digits.values))
    with torch.no_grad():
        rows = bounds.evaluate(model.denoiser, judge.images, judge.labels, range(len(judge.images)))
    summary = bounds.summarize(rows, model.denoiser.grid((8, 8)))
    return {
        "synchronous": summary.mean("synchronous"),
        "async_patch": summary.mean("async_patch"),
        "gap": summary.gap()[0],
    }


def main() -> None:
    """Train, evaluate and print the table."""
    layers = {name: ["digits_dit_async", f"objectives/{name}"] for name in OBJECTIVES}
    files, seeds = train_all(layers, __doc__, Path("runs/digits_objectives"))
    judge = Judge()
    heads = ["objective", "bits/dim, synchronous", "async_patch", "path gap", "Fréchet, with labels", "without labels"]
    heads += ["inpainted", "class kept"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in OBJECTIVES:
        models = [DiffusionModel.load(files[name, seed]) for seed in seeds]
        print(row(name, [bits(model, judge) | judge.evaluate(model) for model in models]), flush=True)


if __name__ == "__main__":
    main()
