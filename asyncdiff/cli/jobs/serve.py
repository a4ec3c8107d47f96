"""Turn draw requests of the page into jobs of the image commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.image_commands import DrawArguments
from asyncdiff.cli.commands.shared.options import load_model
from asyncdiff.cli.jobs.draw import DrawJob, prepare_job
from asyncdiff.model import DiffusionModel
from asyncdiff.web.draw_request import DrawRequest, command_argv, shell_command


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
