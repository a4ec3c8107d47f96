"""What a network's output stands for, and the velocity that follows from it under a process.

Losses, samplers and predicted log-variances stay those of the velocity, whatever the target. Networks of the velocity
are trained best as they are; the others are for networks that were trained elsewhere, or need it.
"""

from abc import ABC, abstractmethod

import torch

from asyncdiff.noise.processes import Process
from asyncdiff.shapes import Image, LevelMap


class Target(ABC):
    """The quantity that a network predicts."""

    @abstractmethod
    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        """The velocity of a network's `output` at `x_t`; finite at every level."""

    def check(self, process: Process) -> None:  # noqa: B027  most targets go with every process
        """Raise ValueError if there are levels at which no velocity follows."""


class VelocityTarget(Target):
    """The velocity itself."""

    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        """The output."""
        return output


class NoiseTarget(Target):
    """eps, as in DDPM and DiT. Needs a process that leaves some image at t = 1: without, eps tells nothing of it.

    There its error comes out 1 / alpha(1) times as large, with `LinearVP` 157 times: outputs want float32 or
    at least little to be wrong by. `Epsilon` weights that away in training, and a step of a sampler does, too.
    """

    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        """(eps - c x_t) / alpha."""
        return process.v_from_eps(x_t, output, t)

    def check(self, process: Process) -> None:
        """Refuse processes with alpha(1) = 0."""
        if not process.alpha(torch.ones((), device="cpu")) > 0:
            raise ValueError(
                f"target NoiseTarget needs a process with alpha(1) > 0, got {type(process).__name__}, where no "
                "image follows from the noise at t = 1: use LinearVP, or the target VelocityTarget"
            )


class CleanTarget(Target):
    """x, the clean image (JiT, arXiv:2511.13720, which divides by 0.05 at least, too).

    Args:
        floor: what sigma is raised to where it divides, above 0. Below, the velocity is that of output and x_t as if
            there were so much noise: finite at t = 0, and no other than what can be learned.
    """

    def __init__(self, floor: float = 0.05):
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor}: 0.05 is JiT's, 1e-4 is nearly none")
        self.floor = floor

    def velocity(self, process: Process, output: Image, x_t: Image, t: LevelMap) -> Image:
        """(c x_t - x) / max(sigma, floor)."""
        return process.v_from_x(x_t, output, t, floor=self.floor)
