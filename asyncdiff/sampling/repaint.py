"""RePaint (Lugmayr et al., arXiv:2201.09865): the baseline that completes images without level maps.

What it repeats to harmonise known and unknown pixels also helps a level map where masks cut its patches.
"""

from collections.abc import Iterator, Sequence

import torch

from asyncdiff.checks import at_least
from asyncdiff.sampling.guidance import Guidance, InputGuidance
from asyncdiff.sampling.samplers import Frame, ImageSampler, Start
from asyncdiff.sampling.solvers import DDIM, Solver
from asyncdiff.shapes import Image, LevelMap


class RePaint(ImageSampler):
    """All unknown pixels at one level; after every step the known ones are replaced by the image, noised afresh.

    Known and unknown pixels do not harmonise that way: the walk jumps back to higher noise and repeats. With the usual
    250 steps and 10 jumps of 10 it takes 2410 evaluations.

    Args:
        steps: levels of the walk, equidistant in t.
        jump: steps that one jump goes back.
        resamples: how often every stretch of `jump` steps is walked; 1 never jumps back.
        solver: the rule for one step; ancestral by default, as in the paper.
        guidance: what the denoiser is guided by, applied in this order.
        hold: keep wholly known patches at level 0, as a conditioned path does, and replace only the known pixels of
            others: for masks that cut many patches. False is the paper's, which has no level maps.
    """

    def __init__(
        self,
        steps: int = 250,
        jump: int = 10,
        resamples: int = 10,
        solver: Solver | None = None,
        guidance: Sequence[Guidance] = (),
        hold: bool = False,
    ):
        at_least("steps", steps, 1, "250 is the paper's")
        at_least("jump", jump, 1, "10 is the paper's")
        at_least("resamples", resamples, 1, "10 is the paper's, 1 never jumps back")
        self.steps = steps
        self.jump = jump
        self.resamples = resamples
        self.solver = solver or DDIM(1.0)
        self.guidance = list(guidance)
        self.hold = hold
        if not hold and any(isinstance(rule, InputGuidance) for rule in self.guidance):
            raise ValueError("guidance of RePaint must not be InputGuidance, as no patch is ever given clean: set hold")

    def walk(self, start: Start) -> Iterator[Frame]:
        """The states before and after every step down or jump up."""
        if start.image is None or start.known is None:
            raise ValueError("RePaint completes images, got neither image nor known: use Sampler to generate")
        process, x_t = start.denoiser.process, start.x_t if self.hold else start.eps

        def level_map(step: int) -> LevelMap:
            t = torch.full(start.held.shape, step / self.steps, device=x_t.device, dtype=start.source.dtype)
            return t.masked_fill(start.held, 0) if self.hold else t

        at, t = self.steps, level_map(self.steps)
        yield Frame(x_t, t, 1.0)
        for step in self.schedule():
            to = level_map(step)
            if step > at:
                x_t = process.diffused(x_t, start.noise(), t, to).to(x_t.dtype)
            else:
                # A fresh walk for every step: what happened before a jump is no history of the next step.
                solver = self.solver.begin()
                noise = start.noise() if solver.stochastic else None
                x_t = self._known(solver(start.evaluate, x_t, t, to, noise).to(x_t.dtype), to, start)
            at, t = step, to
            yield Frame(x_t, t, at / self.steps)

    def schedule(self) -> Iterator[int]:
        """The steps that follow each other from `steps` to 0: one down, or `jump` up (the paper's appendix).

        Jumps start at steps 1, 1 + jump, ..., where the paper counts 0, jump, ... and -1 is the clean image.
        """
        left = dict.fromkeys(range(1, self.steps - self.jump + 1, self.jump), self.resamples - 1)
        at = self.steps
        while at > 0:
            at -= 1
            yield at
            if left.get(at, 0):
                left[at] -= 1
                at += self.jump
                yield at

    @staticmethod
    def _known(x_t: Image, t: LevelMap, start: Start) -> Image:
        assert start.image is not None
        assert start.known is not None
        noised = start.denoiser.process.noised(start.image, start.noise(), t).to(x_t.dtype)
        return torch.where(start.known[:, None], noised, x_t)
