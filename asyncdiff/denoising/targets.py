"""Targets: quantities that a network can predict, and their conversion to the velocity.

Losses, samplers and predicted log-variances always refer to the velocity, whatever the target. Train new networks with
`VelocityTarget`; the other targets are for networks that were trained elsewhere or for architectures that need them.
"""

from abc import ABC, abstractmethod

import torch

from asyncdiff.checks import positive
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import Image, LevelMap


class Target(ABC):
    """Quantity that a network predicts."""

    @abstractmethod
    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        """Convert a network's `output` at `x_t` to the velocity, which must be finite at every level."""

    def check(self, process: Process) -> None:  # noqa: B027  most targets work with every process
        """Raise ValueError if the velocity is undefined at some level of `process`."""


class VelocityTarget(Target):
    """Target v, the velocity: the default."""

    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        return output


class NoiseTarget(Target):
    """Target eps, the noise, as in DDPM and DiT: v = (eps - c x_t) / alpha.

    Needs a process with alpha(1) > 0: pure noise says nothing about the image. At t = 1 the error of the output is
    multiplied by 1 / alpha(1), 157 for `LinearVP`: compute outputs in float32. The weighting `Epsilon` compensates for
    this factor in training, and so does a sampling step.
    """

    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        return process.v_from_eps(x_t, output, t)

    def check(self, process: Process) -> None:
        """Raise ValueError if alpha(1) = 0."""
        if not process.alpha(torch.ones((), device="cpu")) > 0:
            raise ValueError(
                f"target NoiseTarget needs a process with alpha(1) > 0, got {type(process).__name__}, where noise does "
                "not determine the image at t = 1: use LinearVP, or VelocityTarget"
            )


class CleanTarget(Target):
    """Target x, the clean image: v = (c x_t - x) / max(sigma, floor) (JiT, arXiv:2511.13720, which uses floor 0.05).

    Args:
        floor: lower limit for the divisor sigma, above 0. The velocity is finite at t = 0, but too small where
            sigma < floor.
    """

    def __init__(self, floor: float = 0.05):
        positive("floor", floor, "use 0.05 as in JiT, or 1e-4 for almost no floor")
        self.floor = floor

    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        return process.v_from_x(x_t, output, t, floor=self.floor)
