"""Cost and quality of orders, guidance and adaptive samplers, with one checkpoint.

    python -m benchmarks.tasks runs/demo overlaps skipping guidance adaptive masks

prints one Markdown table per name. For digits, Fréchet distances and class accuracies of inpainted images are those of
a small classifier, as in benchmarks.digits_levels. For other data, pass the weights of SqueezeNet with --squeezenet
FILE: distances then use its pooled features, and LPIPS to the original replaces the class accuracy. Evaluations are the
batch rows that pass through the network per image; patches are evaluations times the share of patches that were
computed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from asyncdiff import DiffusionModel
from asyncdiff.cli.jobs.experiment_file import Experiment
from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.features.lpips import LPIPS, BackboneFeatures
from asyncdiff.evaluation.held_out_images import evenly_spaced
from asyncdiff.noise.masks import MASKS, Half, Mask
from asyncdiff.noise.orders import Raster
from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.guidance import ClassifierFree, InputGuidance
from asyncdiff.sampling.look_ahead import LookAhead
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import DDIM, Multistep
from asyncdiff.sampling.step_rules import DualLoop, Sequential, Tolerance
from benchmarks.digits_levels import Judge

REFERENCE = 10_000  # training images of the reference statistics
HALF = Half()
OVERLAPS = (0.0, 0.5, 0.75, 0.9)


class Cost:
    """Context manager that counts the rows and patches that pass through a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.evaluations = self.patches = self.seconds = 0.0
        self.network = network

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows, kv_cache = len(args[0]), options.get("kv_cache")
        share = 1.0 if kv_cache is None or kv_cache.moving is None else float(kv_cache.moving.flatten(1).float().mean())
        self.evaluations += rows
        self.patches += rows * share

    def __enter__(self) -> "Cost":
        self._hook = self.network.register_forward_pre_hook(self._count, with_kwargs=True)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        self.seconds += time.perf_counter() - self._started


class PhotoJudge:
    """Evaluator for the held-out images of a run's data; reference: SqueezeNet's features of its training split."""

    def __init__(self, run: Path, squeezenet: Path, images: int) -> None:
        data: Any = Experiment(run / "config.yaml").data()
        held_out = data.dataset("val").plain()
        batch = held_out.__getitems__(evenly_spaced(len(held_out), images))
        self.images, self.labels = batch["image"], batch["label"]
        self.lpips = LPIPS("squeeze", str(squeezenet))
        self.metric = FrechetDistance(BackboneFeatures("squeeze", str(squeezenet)))
        train = data.dataset("train").plain()
        indices = evenly_spaced(len(train), REFERENCE)
        for first in range(0, len(indices), 256):
            self.metric.update(train.__getitems__(indices[first : first + 256])["image"], real=True)

    def frechet(self, images: Tensor) -> float:
        """Return the Fréchet distance to the training split."""
        self.metric.reset()
        self.metric.update(images, real=False)
        return self.metric.compute().item()


@dataclass
class Bench:
    """Model with its evaluator; every row uses the same seeds."""

    model: DiffusionModel
    judge: Judge | PhotoJudge
    images: int
    draws: int = 1

    def mean_over_draws(self, sampler: ImageSampler) -> dict[str, float]:
        """Return means over `draws` sets of seeds."""
        each = [self.generate(sampler, first * self.images) for first in range(self.draws)]
        return {name: mean(values[name] for values in each) for name in each[0]}

    def generate(self, sampler: ImageSampler, first: int = 0) -> dict[str, float]:
        """Generate images with labels and return their scores and cost."""
        seeds = range(first, first + self.images)
        labels = [i % self.model.classes for i in seeds]
        with Cost(self.model.network) as cost:
            images = self.model.generate(seeds, labels, sampler=sampler)
        return {"Fréchet": self.judge.frechet(images), **self.per_image(cost)}

    def inpaint(self, sampler: ImageSampler, use_labels: bool = False, mask: Mask = HALF) -> dict[str, float]:
        """Inpaint held-out images, with or without labels, and return their scores and cost; mask i has seed i."""
        truth, labels = self.judge.images[: self.images], self.judge.labels[: self.images]
        with Cost(self.model.network) as cost:
            images = self.model.inpaint(
                truth,
                mask.per_image(*truth.shape[2:], seeds=range(len(truth))),
                seeds=range(len(truth)),
                labels=labels.tolist() if use_labels else None,
                sampler=sampler,
            )
        values = {"Fréchet": self.judge.frechet(images)}
        if isinstance(self.judge, Judge):
            values["class kept"] = self.judge.classifier.accuracy(images, labels)
        else:
            values["LPIPS"] = self.judge.lpips(images, truth).mean().item()
        return values | self.per_image(cost)

    def per_image(self, cost: Cost) -> dict[str, float]:
        """Return the cost per image."""
        each = {"evaluations": cost.evaluations, "patches": cost.patches, "ms": 1000 * cost.seconds}
        return {name: value / self.images for name, value in each.items()}


Rows = Iterator[tuple[str, dict[str, float]]]


def overlaps(bench: Bench) -> Rows:
    """Raster order with 16 steps per patch: quality against evaluations."""
    for overlap in OVERLAPS:
        for refresh in (1, 16):
            name = f"overlap {overlap:g}" + (f", all patches every {refresh}" if refresh > 1 else "")
            yield name, bench.generate(Autoregressive(Raster(), overlap, Multistep(), 16, refresh=refresh))
    for steps in (16, 32, 64):
        yield f"synchronous, {steps} steps", bench.generate(Sampler(solver=Multistep(), steps=steps))


def partial_updates(bench: Bench) -> Rows:
    """Strict raster order with 16 steps per patch: cost and quality of partial updates."""
    full = None
    for refresh, margin in ((1, 0), (64, 0), (32, 0), (16, 0), (8, 0), (16, 1)):
        values = bench.mean_over_draws(Autoregressive(Raster(), 0.0, Multistep(), 16, refresh=refresh, margin=margin))
        full = full or values
        shares = {"of the patches": values["patches"] / full["patches"], "of the time": values["ms"] / full["ms"]}
        yield f"refresh {refresh}, margin {margin}", values | shares


def guidance(bench: Bench) -> Rows:
    """Inpainting: strength omega and level g of input guidance, then classifier-free guidance, then both."""
    yield "unguided", bench.inpaint(Sampler(solver=Multistep()))
    for level in (0.25, 0.5, 1.0):
        for strength in (0.25, 0.5, 1.0, 2.0):
            sampler = Sampler(solver=Multistep(), guidance=[InputGuidance(strength, level)])
            yield f"g = {level:g}, omega = {strength:g}", bench.inpaint(sampler)
    for scale in (1.0, 1.5, 2.0, 3.0):
        sampler = Sampler(solver=Multistep(), guidance=[ClassifierFree(scale)])
        yield f"with labels, w = {scale:g}", bench.inpaint(sampler, use_labels=True)
    both = [ClassifierFree(1.5), InputGuidance(0.5, 0.5)]
    yield "with labels, w = 1.5, g = 0.5, omega = 0.5", bench.inpaint(Sampler(solver=Multistep(), guidance=both), True)


def adaptive(bench: Bench) -> Rows:
    """Step rules based on the predicted uncertainty, compared with uniform steps; same solver and time grid."""
    for steps in (8, 12, 16, 24, 32, 50):
        yield f"uniform, {steps} steps", bench.generate(Sampler(solver=DDIM(), steps=steps))
    for tolerance in (0.02, 0.03, 0.04, 0.06, 0.08):
        step_rule = Tolerance(tolerance, max_stride=8)
        yield f"tolerance {tolerance:g}", bench.generate(Adaptive(step_rule, DDIM(), steps=50))
        yield (
            f"tolerance {tolerance:g}, partial updates",
            bench.generate(Adaptive(step_rule, DDIM(), steps=50, refresh=8)),
        )
    for outer in (4, 8, 12):
        yield f"dual loop, {outer} outer steps", bench.generate(Adaptive(DualLoop(), DDIM(), steps=4 * outer))
    for steps in (8, 12, 24):
        yield f"look-ahead, {steps} steps", bench.generate(Sampler(None, DDIM(), steps, [LookAhead()]))
    yield "sequential, 16 steps per patch", bench.generate(Adaptive(Sequential(), DDIM(), steps=16))
    yield "sequential, overlap 0.75", bench.generate(Adaptive(Sequential(overlap=0.75), DDIM(), steps=16))


def masks(bench: Bench) -> Rows:
    """Conditioned path, RePaint, and RePaint that keeps known patches clean, all with 50 evaluations."""
    samplers = {
        "path": bench.model.sampler,
        "RePaint": RePaint(10, 2, 6),
        "RePaint, hold": RePaint(10, 2, 6, hold=True),
    }
    for name, mask in MASKS.items():
        for tag, sampler in samplers.items():
            yield f"{name}, {tag}", bench.inpaint(sampler, mask=mask)


TABLES: dict[str, Callable[[Bench], Rows]] = {
    "overlaps": overlaps,
    "skipping": partial_updates,
    "guidance": guidance,
    "adaptive": adaptive,
    "masks": masks,
}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--images", type=int, default=359)
    parser.add_argument(
        "--draws", type=int, default=1, help="number of sets of seeds to average over in the table of partial updates"
    )
    parser.add_argument("--squeezenet", type=Path, help="torchvision's SqueezeNet weights, for data other than digits")
    options = parser.parse_args()
    model = DiffusionModel.load(options.run)
    judge = PhotoJudge(options.run, options.squeezenet, options.images) if options.squeezenet else Judge()
    bench = Bench(model, judge, options.images, options.draws)
    print(f"real held-out images: {judge.frechet(judge.images[: options.images]):.2f}")
    for name in options.tables:
        for number, (row, values) in enumerate(TABLES[name](bench)):
            if number == 0:
                print(f"\n| {name} | {' | '.join(values)} |\n|{'---|' * (len(values) + 1)}")
            print(f"| {row} | {' | '.join(_format(value) for value in values.values())} |", flush=True)


def _format(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
