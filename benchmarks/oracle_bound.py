"""Likelihood bound of an exact denoiser along many paths, compared with the true density of a Gaussian.

    python -m benchmarks.oracle_bound

16 correlated pixels on a 2x2 level map, float64. The expectation over the noise is exact: the noise takes the points
+-sqrt(d) e_j of a cubature, which is exact for quadratic functions such as the squared error of a Gaussian. Only the
quadrature along the path remains.
"""

import argparse
import math

import torch
from torch import Tensor

from asyncdiff.denoising import likelihood
from asyncdiff.denoising.likelihood import GaussianDecoder, bound, discrete_bound
from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import CenterOut, Raster, Shuffled, Spiral, Wavefront
from asyncdiff.noise.paths import AsyncPatch, Ordered, Path, Synchronous, Waypoints
from asyncdiff.noise.progress_samplers import FluxProgress, UniformProgress
from asyncdiff.randomness import per_image, seeded
from asyncdiff.shapes import LevelMap, Progress

DIMS, GRID, SHAPE, FLOOR = 16, (2, 2), (1, 4, 4), 0.2
PATHS = {
    "synchronous": Synchronous(),
    "AsyncPatch": AsyncPatch(),
    "raster, strict": Ordered(Raster()),
    "spiral, overlap 0.5": Ordered(Spiral(), 0.5),
    "wavefront, overlap 0.75": Ordered(Wavefront(), 0.75),
    "center-out, strict": Ordered(CenterOut()),
    "shuffled, overlap 0.25": Ordered(Shuffled(), 0.25),
    "custom waypoints": Waypoints([[[0.0, 0.6], [0.9, 0.2]]], progress=[0.7]),
}
STEPS = (128, 256, 512)


class Slopeless(Path):
    """Path with all slopes set to 1, as in a loss that omits them."""

    def __init__(self, path: Path):
        self.path = path

    def curve(self, source):
        inner = self.path.curve(source)

        def curve(s: Progress) -> tuple[LevelMap, LevelMap]:
            t, slope = inner(s)
            return t, torch.ones_like(slope)

        return curve


def cubature(shape: tuple[int, ...], **_: object) -> Tensor:
    """Return the cubature points instead of random noise, for every 2 d copies of an image."""
    points = math.sqrt(DIMS) * torch.cat([torch.eye(DIMS), -torch.eye(DIMS)]).double()
    return points.repeat(shape[0] // len(points), 1).reshape(shape)


def repeated(x: Tensor) -> dict:
    """Return arguments of `bound` with every image repeated per cubature point, on one curve."""
    return {
        "x": x.repeat_interleave(2 * DIMS, 0),
        "generator": per_image([k for k in range(len(x)) for _ in range(2 * DIMS)]),
        "decoder": GaussianDecoder(),
    }


def mean(nats: Tensor) -> Tensor:
    """Return the expectation over the noise, per image."""
    return nats.reshape(-1, 2 * DIMS).mean(1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--points", type=int, default=2048)
    options = parser.parse_args()
    likelihood.normal = cubature  # type: ignore[attr-defined]
    oracle = GaussianOracle(*random_gaussian(DIMS), GRID)
    x = oracle.sample(options.images, SHAPE, seeded(0))
    truth, mask = -oracle.log_prob(x), Half("top")(4, 4)
    conditional = -oracle.conditional_log_prob(x, mask)
    flux = {"points": options.points, "progress_sampler": FluxProgress(1.0)}
    print(f"true -log p of {options.images} images: {truth.mean():.6f} nats on average")
    heads = ["path", "bound", "largest relative error", "-log p(lower | upper half), error", "excess without slopes"]
    heads += [f"{steps} steps, excess" for steps in STEPS] + ["order"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, path in PATHS.items():
        total = mean(bound(oracle, path=path, **repeated(x), **flux).total)
        known = mask.expand(2 * DIMS * len(x), 4, 4)
        rest = mean(bound(oracle, path=path, known=known, **repeated(x), **flux).total)
        plain = {"points": options.points, "progress_sampler": UniformProgress()}
        floor = mean(bound(oracle, path=path, t_min=FLOOR, **repeated(x), **flux).total)
        slopeless = mean(bound(oracle, path=Slopeless(path), t_min=FLOOR, **repeated(x), **plain).total)
        gaps = [
            (mean(discrete_bound(oracle, path=path, t_min=FLOOR, steps=k, **repeated(x)).total) - floor).mean().item()
            for k in STEPS
        ]
        cells = [name, f"{total.mean():.6f}", f"{((total - truth) / truth).abs().max():.1e}"]
        cells += [f"{((rest - conditional) / conditional).abs().max():.1e}", f"{(slopeless - floor).mean():+.1f}"]
        cells += [*(f"{gap:.4f}" for gap in gaps), f"{math.log2(gaps[-2] / gaps[-1]):.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
