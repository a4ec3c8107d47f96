"""RePaint (Lugmayr et al., arXiv:2201.09865): the inpainting baseline, which needs no level maps.

Its resampling also helps models with level maps if the mask cuts through patches.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from asyncdiff.checks import MAX_STEPS, at_least
from asyncdiff.sampling.guidance import Guidance, InputGuidance
from asyncdiff.sampling.hosted_levels import hosted_in_turn
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.sampling.solvers import DDIM, Solver, take_step
from asyncdiff.sampling.trajectories import Frame, Start
from asyncdiff.shapes import LevelMap


class RePaint(ImageSampler):
    """Inpainting by replacement and resampling, the baseline of Lugmayr et al. (arXiv:2201.09865).

    All pixels share one level. After every step the known pixels are replaced by the image with fresh noise. This alone
    does not harmonize known and unknown pixels, so the sampler repeatedly jumps back to a higher level and denoises
    again. The paper's settings, 250 steps with every interval of 10 denoised 10 times, take 2410 network evaluations.

    Use it with any model as the baseline, or with `hold` for masks that cut through many patches.

    Args:
        steps: number of levels, equidistant in t.
        jump: number of steps per jump back.
        resamples: number of times that every interval of `jump` steps is denoised; 1 never jumps back.
        solver: solver that takes each step; `DDIM(1.0)` by default, ancestral as in the paper.
        guidance: guidance rules, applied in this order.
        hold: whether to keep fully known patches at level 0, as on a conditioned path, and to replace only the known
            pixels of other patches. False is the paper's algorithm, which has no level maps.
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
        at_least("steps", steps, 1, "the paper uses 250", MAX_STEPS)
        at_least("jump", jump, 1, "the paper uses 10", MAX_STEPS)
        at_least("resamples", resamples, 1, "the paper uses 10, 1 never jumps back", MAX_STEPS // steps)
        self.steps = steps
        self.jump = jump
        self.resamples = resamples
        self.solver = solver or DDIM(1.0)
        self.guidance = list(guidance)
        self.hold = hold
        if not hold and any(isinstance(rule, InputGuidance) for rule in self.guidance):
            raise ValueError(
                "InputGuidance needs known patches at level 0, which RePaint has only with hold: set hold to true"
            )

    def walk(self, start: Start) -> Iterator[Frame]:
        if start.image is None or start.known is None:
            raise ValueError("RePaint needs image and known, got neither: use Sampler to generate images")
        image, known = start.image, start.known[:, None]
        process, x_t = start.denoiser.process, start.x_t if self.hold else start.eps

        def level_map(step: int) -> LevelMap:
            fixed = start.host_known_patches
            t = torch.full(fixed.shape, step / self.steps, dtype=start.source.dtype, device="cpu")
            return t.masked_fill(fixed, 0) if self.hold else t

        maps = hosted_in_turn(map(level_map, chain([self.steps], self.schedule())), start.device)
        at, t = self.steps, next(maps)
        yield Frame(x_t, t.levels, 1.0)
        for step, to in zip(self.schedule(), maps, strict=True):
            if step > at:
                x_t = process.diffused(x_t, start.noise(), t.levels, to.levels).to(x_t.dtype)
            else:
                # A fresh solver for every step: the steps before a jump are not the history of the next one.
                solver = self.solver.begin()
                noise = start.noise() if solver.stochastic else None
                x_t = take_step(solver, start.evaluate, x_t, t, to, noise).to(x_t.dtype)
                x_t = torch.where(known, process.noised(image, start.noise(), to.levels).to(x_t.dtype), x_t)
            at, t = step, to
            yield Frame(x_t, t.levels, at / self.steps)

    def schedule(self) -> Iterator[int]:
        """Yield the step numbers after `steps`, down to 0: each is one lower, or `jump` higher (the paper's appendix).

        Jumps start at steps 1, 1 + jump, ..., where the paper counts 0, jump, ... and -1 is the clean image.
        """
        jumps_left = dict.fromkeys(range(1, self.steps - self.jump + 1, self.jump), self.resamples - 1)
        at = self.steps
        while at > 0:
            at -= 1
            yield at
            if jumps_left.get(at, 0):
                jumps_left[at] -= 1
                at += self.jump
                yield at
