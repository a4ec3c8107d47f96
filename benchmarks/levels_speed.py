"""Cost of drawing level maps, relative to a training step.

    python -m benchmarks.levels_speed --rounds 7

times every level sampler on 256 images of 16x16 patches, and forward and backward passes of DiT-S (dim 384, depth 12,
heads 6; 256 tokens), interleaved on one thread; prints a Markdown table of medians over the rounds. The training step
is measured on a batch of 4 and scaled to 256; it has shared levels, which are cheapest, and no optimizer, so that the
percentages are upper bounds.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from asyncdiff import noise
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import Velocity
from asyncdiff.networks.dit import DiT
from asyncdiff.randomness import seeded

IMAGES, GRID, SIZE, STEP_IMAGES = 256, (16, 16), 32, 4
SAMPLERS: dict[str, noise.LevelSampler] = {
    "Shared": noise.Shared(),
    "Independent": noise.Independent(),
    "AlongPath(Synchronous)": noise.AlongPath(noise.Synchronous()),
    "AlongPath(AsyncPatch)": noise.AlongPath(noise.AsyncPatch()),
    "AlongPath(AsyncPatch(BlockwiseField))": noise.AlongPath(noise.AsyncPatch(field=noise.BlockwiseField())),
    "AlongPath(AsyncPatch(PerlinField))": noise.AlongPath(noise.AsyncPatch(field=noise.PerlinField())),
    "AlongPath(Ordered(Raster))": noise.AlongPath(noise.Ordered(noise.Raster())),
    "AlongPath(Ordered(Shuffled))": noise.AlongPath(noise.Ordered(noise.Shuffled(), overlap=0.5)),
    "AlongPath(Waypoints)": noise.AlongPath(noise.Waypoints([[[0.2, 0.4], [0.1, 0.9]]])),
    "AlongPath(Floored(AsyncPatch), FluxProgress)": noise.AlongPath(
        noise.Floored(noise.AsyncPatch()), noise.FluxProgress()
    ),
    "AlongPath(Floored(Ordered(Raster)), FluxProgress)": noise.AlongPath(
        noise.Floored(noise.Ordered(noise.Raster())), noise.FluxProgress()
    ),
    "Perlin": noise.Perlin(),
    "SumBeta": noise.SumBeta(),
    "TruncatedGaussian": noise.TruncatedGaussian(),
    "LogitNormalTruncated": noise.LogitNormalTruncated(),
    "Gaussian": noise.Gaussian(),
    "WithCleanPatches(AsyncPatch, Boxes)": noise.WithCleanPatches(noise.AlongPath(), clean_patches=noise.RandomBoxes()),
    "WithCleanPatches(AsyncPatch, RandomRegions)": noise.WithCleanPatches(
        noise.AlongPath(), clean_patches=noise.RandomRegions()
    ),
    "WithCleanPatches(AsyncPatch)": noise.WithCleanPatches(noise.AlongPath()),
    "Homogeneous(AsyncPatch)": noise.Homogeneous(noise.AlongPath()),
}


def training_step() -> Callable[[], None]:
    """Return a function that computes loss and gradients of DiT-S on a small batch."""
    torch.manual_seed(0)
    denoiser = Denoiser(DiT(channels=4, patch_size=SIZE // GRID[0], dim=384, depth=12, heads=6), noise.RectifiedFlow())
    x, eps = torch.randn(2, STEP_IMAGES, 4, SIZE, SIZE)

    def step() -> None:
        denoiser.zero_grad()
        training_loss(denoiser, x, eps, noise.Shared()(STEP_IMAGES, GRID), Velocity()).per_image.mean().backward()

    return step


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(rounds: int) -> tuple[float, dict[str, float]]:
    """Return the median seconds of a training step on `IMAGES` images, and of drawing their levels by sampler."""
    step, steps = training_step(), []
    draws: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for number in range(-1, rounds):  # the first round warms up
        took = seconds(step)
        drawn = {name: seconds(partial(s, IMAGES, GRID, generator=seeded(number + 1))) for name, s in SAMPLERS.items()}
        if number >= 0:
            steps.append(took)
            for name, value in drawn.items():
                draws[name].append(value)
    return median(steps) * IMAGES / STEP_IMAGES, {name: median(values) for name, values in draws.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step, draws = measure(arguments.rounds)
    print(f"A step of DiT-S on {IMAGES} images of 256 tokens: {step:.1f} s (torch {torch.__version__}, one thread)")
    print("\n| levels | ms | % of the step |\n|---|---|---|")
    for name, value in draws.items():
        print(f"| {name} | {1000 * value:.1f} | {100 * value / step:.3f} |")


if __name__ == "__main__":
    main()
