"""Generate images with a denoiser: samplers, solvers, guidance, adaptive step rules and tiling.

An `ImageSampler` turns seeds into images: `Sampler` follows a noise path from noise to image, `Autoregressive`
generates patch by patch, `Adaptive` lets a `StepRule` choose the step of every patch, and `RePaint` is the inpainting
baseline. `TiledSampler` generates images larger than the model's. A `Solver` takes one step; a `Guidance` wraps the
denoiser.
"""

from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.engine import ImageBatch, generate, inpaint, sample
from asyncdiff.sampling.guidance import ClassifierFree, Guidance, InputGuidance
from asyncdiff.sampling.look_ahead import LookAhead
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, ImageSampler, Sampler
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep, Solver
from asyncdiff.sampling.step_rules import DualLoop, PatchState, Sequential, StepRule, Tolerance
from asyncdiff.sampling.tiling import TiledSampler
from asyncdiff.sampling.trajectories import Frame, Start

__all__ = [
    "DDIM",
    "Adaptive",
    "Autoregressive",
    "ClassifierFree",
    "DualLoop",
    "Frame",
    "Guidance",
    "Heun",
    "ImageBatch",
    "ImageSampler",
    "InputGuidance",
    "LookAhead",
    "Multistep",
    "PatchState",
    "RePaint",
    "Sampler",
    "Sequential",
    "Solver",
    "Start",
    "StepRule",
    "TiledSampler",
    "Tolerance",
    "generate",
    "inpaint",
    "sample",
]
