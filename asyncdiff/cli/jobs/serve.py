"""Drawing process of the page: load the model, measure what it costs, and turn requests into jobs of the commands."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.image_commands import DrawArguments
from asyncdiff.cli.commands.shared.options import load_model
from asyncdiff.cli.errors import user_error_message
from asyncdiff.cli.jobs.draw import DrawJob, prepare_job
from asyncdiff.model import DiffusionModel
from asyncdiff.tasks.drawing_cost import DrawingCost
from asyncdiff.tasks.measured_cost import count_evaluations, measure_decoder, measure_network, measured_sizes
from asyncdiff.tasks.photos import collect_warnings, save_png
from asyncdiff.tasks.pixel_space import PixelSpace
from asyncdiff.web.draw_request import DrawRequest, command_argv, shell_command
from asyncdiff.web.limits import Limits
from asyncdiff.web.model_info import ModelInfo, PageFacts, model_info
from asyncdiff.web.uploads import load_examples

MEASURED_STEPS = 4  # sampling steps of the drawings whose evaluations are counted
MEASURED_SIDE = 256  # of the image whose encoding is measured


@dataclass(frozen=True)
class Planner:
    """Callable that turns requests into jobs for a model that is loaded once.

    Attributes:
        model: model that draws, which no request changes.
        checkpoint: its checkpoint.
        model_argv: options that select the device and the weights, for the command lines shown to the user.
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
        return cls(model, checkpoint, ["--device", options.device, *weights], codec_argv)

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
        cost = measure_cost(planner, info)
        return PageFacts(info, load_examples(examples, planner.model, info, self.limits), cost)


def measure_cost(planner: Planner, info: ModelInfo) -> DrawingCost:
    """Measure what drawing costs: evaluations of several sizes, and how many of them a step takes."""
    model, space = planner.model, PixelSpace(planner.model)
    with TemporaryDirectory() as folder, collect_warnings():
        counted = _count_evaluations(planner, info, Path(folder))
        plain = counted.pop("plain") or 2.0
        grows = info.steps is None
        return DrawingCost(
            network=measure_network(model),
            codec=None if model.codec is None else measure_decoder(model),
            window=info.size,
            patch=info.patch,
            factor=space.factor,
            steps=math.ceil(plain / 2) if grows else info.steps or 1,
            grows=grows,
            evaluations=2.0 if grows else plain,
            **{name: max(1.0, (count or 2 * plain) / plain) for name, count in counted.items()},
            pixel=_time_per_pixel(info.channels, Path(folder)),
            free=torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else None,
        )


def _count_evaluations(planner: Planner, info: ModelInfo, folder: Path) -> dict[str, float | None]:
    """Return the evaluations per image and step (or per image, without a number of steps), by kind of guidance."""
    factor, smallest = PixelSpace(planner.model).factor, measured_sizes(planner.model)[0]
    height, width = (smallest[0] * factor, smallest[1] * factor) if info.steps else info.size
    photo = torch.zeros(info.channels, height, width, dtype=torch.uint8)
    paint = torch.full((height, width), 255, dtype=torch.uint8)
    paint[: info.patch[0]] = 0
    steps = MEASURED_STEPS if info.steps else None
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "input_guidance": {"input_guidance": 1.0}}
    if info.classes:
        kinds["class_guidance"] = {"label": 0, "guidance": 2.0}
    counted: dict[str, float | None] = {}
    for name, options in kinds.items():
        (folder / name).mkdir()
        try:
            with count_evaluations(planner.model) as counts:
                request = DrawRequest("fill", photo, paint, steps=steps, movie=False, **options)
                for _ in planner(request, folder / name)[0].steps():
                    pass
            counted[name] = sum(counts) / (steps or 1)
        except ValueError:  # a sampler that cannot draw this
            counted[name] = None
    return counted


def _time_per_pixel(channels: int, folder: Path) -> float:
    """Return the seconds that encoding takes per pixel of an image, the noisiest."""
    generator = torch.Generator().manual_seed(0)
    size = (channels, MEASURED_SIDE, MEASURED_SIDE)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    started = time.perf_counter()
    save_png(pixels, folder / "noise.png")
    return (time.perf_counter() - started) / MEASURED_SIDE**2
