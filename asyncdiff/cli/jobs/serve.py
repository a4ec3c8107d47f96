"""Drawing process of the page: load the model, measure what it costs, and turn requests into jobs of the commands."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.image_commands import DrawArguments
from asyncdiff.cli.commands.shared.options import load_model, with_arguments
from asyncdiff.cli.errors import user_error_message
from asyncdiff.cli.jobs.draw import DrawJob, prepare_job
from asyncdiff.model import DiffusionModel
from asyncdiff.sampling import Adaptive, ClassifierFree, Guidance, ImageSampler, InputGuidance
from asyncdiff.tasks.drawing_cost import DrawingCost
from asyncdiff.tasks.measured_cost import count_evaluations, measure_decoder, measure_network, measured_sizes
from asyncdiff.tasks.photos import to_pillow
from asyncdiff.tasks.pixel_space import PixelSpace
from asyncdiff.web.draw_request import DrawRequest, command_argv, shell_command
from asyncdiff.web.limits import Limits
from asyncdiff.web.model_info import ModelInfo, PageFacts, model_info
from asyncdiff.web.uploads import load_examples

MEASURED_STEPS = 4  # maximum number of sampling steps of the images whose evaluations with guidance are counted
MEASURED_SIDE = 256  # of the image whose encoding is measured


@dataclass(frozen=True)
class Planner:
    """Callable that turns requests into jobs for a model that is loaded once.

    Attributes:
        model: model that draws, which no request changes.
        checkpoint: its checkpoint.
        model_argv: options that select device, precision and weights, for the command lines shown to the user.
        codec_argv: options that set the codec, which the model has already.
    """

    model: DiffusionModel
    checkpoint: Path
    model_argv: Sequence[str] = ()
    codec_argv: Sequence[str] = ()

    @classmethod
    def load(cls, checkpoint: Path, options: Any, codec_argv: Sequence[str] = ()) -> "Planner":
        """Load the model that the options of the command select."""
        model = load_model(checkpoint, options)
        weights = [] if options.weights == "auto" else ["--weights", options.weights]
        precision = model.precision or "float32"
        return cls(model, checkpoint, ["--device", options.device, "--precision", precision, *weights], codec_argv)

    def __call__(self, request: DrawRequest, folder: Path) -> tuple[DrawJob, str]:
        """Return the job for a request and its command line."""
        argv = [*command_argv(request, self.checkpoint, folder), *self.model_argv]
        arguments = DrawArguments.parse(argv[0], [*argv[1:], "--output", str(folder / "pictures")])
        job = prepare_job(arguments, self.model, self.codec_argv)
        return job, shell_command([*argv, *self.codec_argv, *trusted_packages.option_argv()])


@dataclass(frozen=True)
class Opening:
    """Loads the model in the drawing process; see `asyncdiff.web.drawing_process.Opening`.

    Attributes:
        build: picklable function that returns the options of the command, with the codec built.
        checkpoint: checkpoint of the model.
        codec_argv: options that set the codec.
        trusted_argv: option that lists the additional packages whose classes may be imported.
        name: name of the model.
        limits: limits on requests.
    """

    build: Callable[[], Any]
    checkpoint: Path
    codec_argv: Sequence[str]
    trusted_argv: Sequence[str]
    name: str
    limits: Limits

    @contextmanager
    def __call__(self, first: bool) -> Iterator[tuple[Planner, PageFacts | None]]:
        """Yield the planner; the first time, also the facts about the model."""
        with trusted_packages.restrict_imports(self.trusted_argv):
            try:
                options = self.build()
                planner = Planner.load(self.checkpoint, options, self.codec_argv)
                facts = self._facts(planner, options.examples) if first else None
            except Exception as error:
                if (message := user_error_message(error)) is None:
                    raise RuntimeError("the model cannot be loaded") from error  # a bug, with its traceback
                raise ValueError(message) from error
            yield planner, facts

    def _facts(self, planner: Planner, examples: str) -> PageFacts:
        PixelSpace(planner.model).check_channels()
        info = model_info(planner.model, self.name)
        cost = measure_cost(planner.model, info)
        return PageFacts(info, load_examples(examples, planner.model, info, self.limits), cost)


def measure_cost(model: DiffusionModel, info: ModelInfo) -> DrawingCost:
    """Measure what drawing costs: evaluations of several sizes, and how many of them a step takes."""
    sampler, grows = model.sampler, needs_more_for_larger(model.sampler, info.steps)
    size = model.shape[1:] if grows else measured_sizes(model)[0]
    total = _count_evaluations(model, sampler, size) or info.steps or 1
    quick = with_arguments(sampler, steps=min(info.steps, MEASURED_STEPS)) if info.steps else sampler
    plain = _count_evaluations(model, quick, size, keep=True)

    def factor(rule: Guidance, label: int | None = None) -> float:
        """Return the evaluations with a guidance rule, relative to those without it; two if it cannot be used."""
        others = [other for other in getattr(sampler, "guidance", ()) if not isinstance(other, type(rule))]
        guided = _count_evaluations(model, quick, size, keep=True, label=label, guidance=[*others, rule])
        return max(1.0, guided / plain) if guided and plain else 2.0

    return DrawingCost(
        network=measure_network(model),
        codec=None if model.codec is None else measure_decoder(model),
        window=info.size,
        patch=info.patch,
        factor=PixelSpace(model).factor,
        steps=info.steps or total,
        grows=grows,
        evaluations=total / (info.steps or total),
        ordered_evaluations=getattr(getattr(sampler, "solver", None), "evaluations", 1),
        class_guidance=factor(ClassifierFree(2.0), label=0) if info.classes else 1.0,
        input_guidance=factor(InputGuidance(1.0)),
        pixel=_time_per_pixel(info.channels),
        free=torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else None,
    )


def needs_more_for_larger(sampler: ImageSampler, steps: int | None) -> bool:
    """Return whether a sampler evaluates the network more often for images of more patches."""
    if isinstance(sampler, Adaptive):
        return sampler.step_rule.max_predictions(sampler.steps, 2) > sampler.step_rule.max_predictions(sampler.steps, 1)
    return steps is None


def _count_evaluations(
    model: DiffusionModel,
    sampler: ImageSampler,
    size: Sequence[int],
    *,
    keep: bool = False,
    label: int | None = None,
    **changes: Any,
) -> int | None:
    """Return the evaluations that an image takes, whose upper patches are known with `keep`; None if it is impossible.

    The size is that of the model's space; `changes` are arguments of the sampler.
    """
    image, known = torch.zeros(model.shape[0], *size), torch.zeros(*size, dtype=torch.bool)
    known[: size[0] // model.denoiser.grid((size[0], size[1]))[0]] = keep
    labels = None if label is None else [label]
    try:
        with count_evaluations(model) as counts:
            model.inpaint(image, known, seeds=[0], labels=labels, sampler=with_arguments(sampler, **changes))
    except ValueError:  # a sampler that cannot draw this
        return None
    return sum(counts)


def _time_per_pixel(channels: int) -> float:
    """Return the seconds that encoding takes per pixel of an image, the noisiest."""
    generator = torch.Generator().manual_seed(0)
    size = (channels, MEASURED_SIDE, MEASURED_SIDE)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    started = time.perf_counter()
    to_pillow(pixels).save(BytesIO(), "PNG")
    return (time.perf_counter() - started) / MEASURED_SIDE**2
