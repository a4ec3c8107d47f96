"""Draw what an image command asks for, and write images, contact sheet, GIF and record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli.commands.shared.options import with_arguments
from asyncdiff.cli.jobs.prediction_record import RECORD, format_record
from asyncdiff.evaluation.figures.sampling_gif import MAX_IMAGES, SamplingGIF
from asyncdiff.model import DiffusionModel
from asyncdiff.sampling.guidance import ClassifierFree, Guidance, InputGuidance
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks import Request, State, Task
from asyncdiff.tasks.arguments import check_output_folder, choose_output_folder
from asyncdiff.tasks.batch_memory import check_batches
from asyncdiff.tasks.contact_sheet import collect_notes, keep_for_sheet, write_images, write_sheet
from asyncdiff.tasks.photos import to_bytes

if TYPE_CHECKING:
    from asyncdiff.cli.commands.image_commands import DrawArguments

MOVIE = "walk.gif"


@dataclass(frozen=True)
class DrawJob:
    """Validated job of an image command; call `steps` to draw, then `write_sheet`.

    Attributes:
        task: task built from the command's options.
        model: model with the sampler and codec from the options.
        requests: requests, one per image.
        batch_size: number of images or windows that are drawn together.
        folder: output folder.
        movie: file of the GIF of the first batch; None if none is written.
        record: YAML text that reproduces the images.
        written: pixels of the first images by name, for the contact sheet.
    """

    task: Task
    model: DiffusionModel
    requests: Sequence[Request]
    batch_size: int
    folder: Path
    movie: Path | None
    record: str
    written: dict[str, Tensor] = field(default_factory=dict)

    @property
    def record_file(self) -> Path:
        """YAML file that reproduces the images."""
        return self.folder / RECORD

    def notes(self) -> list[str]:
        """Return notes on how the photos were resized and cropped."""
        return collect_notes(self.requests)

    def steps(self) -> Iterator[State]:
        """Sample, and write all files except the contact sheet; yield the state of the current batch after every step.

        `done` and `total` of the states count the steps of all batches. Nothing is written before the first images are
        complete.
        """
        with hold(self.folder, "being written"):
            check_output_folder(self.folder, explicit=True)  # another process may have filled it since it was chosen
            yield from self._steps()

    def _steps(self) -> Iterator[State]:
        batches, before = self.task.batches(self.model, self.requests, self.batch_size), 0
        movie = None if self.movie is None else SamplingGIF()
        for number, batch in enumerate(batches):
            for own in self.task.states(self.model, batch, self.batch_size):
                total = None if own.total is None else before + own.total * (len(batches) - number)
                state = replace(own, done=before + own.done, total=total)
                if movie is not None and number == 0:
                    levels = None if state.t is None else state.t[:MAX_IMAGES].cpu()
                    movie.add(to_bytes(state.images[:MAX_IMAGES]), levels)
                yield state
            if number == 0:
                write_atomically(self.record_file, [self.record.encode()])
            keep_for_sheet(self.written, write_images(state.images, batch, self.folder))
            before = state.done
        if movie is not None and self.movie is not None:
            movie.save(self.movie)

    def write_sheet(self) -> Path | None:
        """Write the contact sheet and return its path; None for a single image without a photo."""
        return write_sheet(self.requests, self.folder, self.written)


def prepare_job(arguments: "DrawArguments", model: DiffusionModel, extra_argv: Sequence[str] = ()) -> DrawJob:
    """Check a request against the model, and choose the output folder.

    Args:
        arguments: checked arguments of an image command.
        model: model that draws, with its own sampler.
        extra_argv: arguments that were applied to the model, added to the record.

    Returns:
        The job, ready to run.
    """
    options, task = arguments.options, arguments.task
    model = replace(model, sampler=_sampler(options.get("sampler") or model.sampler, options))
    requests = task.requests(model, seeds=arguments.seeds, labels=arguments.labels)
    if options.guidance is not None and any(request.label is None for request in requests):
        raise ValueError(
            f"--guidance needs class labels, got {options.guidance} without them: add --labels or drop --guidance"
        )
    check_batches(task, model, requests, options.batch_size)
    default = arguments.run / "predictions" / task.name
    folder = choose_output_folder(options.output or default, explicit=options.output is not None)
    movie = folder / MOVIE if options.gif else None
    notes = list(dict.fromkeys(request.photo.note for request in requests if request.photo is not None))
    record = format_record([*arguments.argv, *extra_argv], arguments, model, notes)
    return DrawJob(task, model, requests, options.batch_size, folder, movie, record)


def _sampler(sampler: ImageSampler, options: Any) -> ImageSampler:
    """Return the sampler with the arguments set by the options."""
    changes = {name: options[name] for name in ("steps", "refresh", "margin") if options.get(name) is not None}
    requested: list[Guidance] = []
    if options.guidance is not None:
        requested.append(ClassifierFree(options.guidance))
    if options.input_guidance is not None:
        level = {} if options.input_level is None else {"level": options.input_level}
        requested.append(InputGuidance(options.input_guidance, **level))
    if requested:
        kinds = tuple(type(rule) for rule in requested)
        changes["guidance"] = [*(rule for rule in sampler.guidance if not isinstance(rule, kinds)), *requested]
    return with_arguments(sampler, **changes) if changes else sampler
