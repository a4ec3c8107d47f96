"""How images are drawn: samplers, solvers, guidance, adaptive step rules and tiling."""

from asyncdiff.sampling.adaptive import Adaptive
from asyncdiff.sampling.batched import generate, inpaint
from asyncdiff.sampling.guidance import ClassifierFree, Guidance, InputGuidance
from asyncdiff.sampling.look_ahead import LookAhead
from asyncdiff.sampling.repaint import RePaint
from asyncdiff.sampling.samplers import Autoregressive, Frame, ImageSampler, Sampler, Start
from asyncdiff.sampling.solvers import DDIM, Heun, Multistep, Solver
from asyncdiff.sampling.step_rules import DualLoop, PatchState, Sequential, StepRule, Tolerance
from asyncdiff.sampling.tiling import TiledSampler

__all__ = [
    "DDIM",
    "Adaptive",
    "Autoregressive",
    "ClassifierFree",
    "DualLoop",
    "Frame",
    "Guidance",
    "Heun",
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
]
