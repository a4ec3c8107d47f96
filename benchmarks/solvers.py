"""Error of solvers against the number of network evaluations, on synchronous, asynchronous and ordered paths.

    python -m benchmarks.solvers

prints a Markdown table: RMS distance per pixel from the solution of the probability-flow ODE on the same paths and from
the same noise (2048 steps of Heun), for a mixture of Gaussians with its exact denoiser. Nothing is trained; it takes a
minute on a CPU.
"""

import argparse

import torch
from torch import Tensor

from asyncdiff.denoising.oracles import MixtureOracle, random_mixture
from asyncdiff.noise.orders import Raster, Wavefront
from asyncdiff.noise.paths import AsyncPatch, Ordered, Path, Synchronous
from asyncdiff.noise.processes import CosineVP, Process, RectifiedFlow
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep, Solver

SHAPE, GRID, COMPONENTS = (1, 4, 4), (4, 4), 4
PATHS: dict[str, Path] = {
    "synchronous": Synchronous(),
    "AsyncPatch": AsyncPatch(),
    "ordered, wavefront, overlap 0.8": Ordered(Wavefront(), overlap=0.8),
    "ordered, raster, overlap 0.5": Ordered(Raster(), overlap=0.5),
}
SOLVERS: tuple[Solver, ...] = (DDIM(), Heun(), Multistep())
PROCESSES: dict[str, Process] = {"rectified": RectifiedFlow(), "cosine": CosineVP()}
EVALUATIONS = (8, 16, 32, 64)
REFERENCE_STEPS = 2048


def sample(oracle: MixtureOracle, path: Path, solver: Solver, steps: int, images: int) -> Tensor:
    """Return one image per seed, in double precision."""
    return Sampler(path, solver, steps)(oracle, seeds=range(images), shape=SHAPE, dtype=torch.float64)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--process", choices=PROCESSES, default="rectified")
    arguments = parser.parse_args()
    oracle = MixtureOracle(*random_mixture(COMPONENTS, 16), GRID, PROCESSES[arguments.process])
    spread = oracle.sample(10_000, SHAPE, torch.Generator().manual_seed(0)).std(0).mean().item()
    print(f"Standard deviation of a pixel {spread:.2f}, {arguments.images} images, {arguments.process} process.\n")
    print(f"| path | solver | {' | '.join(map(str, EVALUATIONS))} |\n|---|---|{'---|' * len(EVALUATIONS)}")
    for name, path in PATHS.items():
        reference = sample(oracle, path, Heun(), REFERENCE_STEPS, arguments.images)
        for solver in SOLVERS:
            ends = (sample(oracle, path, solver, n // solver.evaluations, arguments.images) for n in EVALUATIONS)
            errors = " | ".join(f"{(end - reference).square().mean().sqrt().item():.4f}" for end in ends)
            print(f"| {name} | {type(solver).__name__} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
