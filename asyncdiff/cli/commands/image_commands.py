"""Commands that generate images: `sample`, `inpaint`, `edit`, `outpaint`, `autoregress` and `texture`."""

import inspect
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from asyncdiff.checkpoints.export import is_export
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.options import (
    RUN,
    SAMPLER,
    add_model,
    command_parser,
    load_model,
    split_option,
    underscore_option,
    with_arguments,
)
from asyncdiff.cli.commands.shared.prediction_record import RECORD, format_record
from asyncdiff.cli.errors import ReportingParser
from asyncdiff.evaluation.figures.sampling_gif import MAX_IMAGES, SamplingGIF
from asyncdiff.sampling.guidance import ClassifierFree, Guidance, InputGuidance
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks import Autoregress, Edit, Generate, Inpaint, Outpaint, Request, State, Task, Texture
from asyncdiff.tasks.contact_sheet import collect_notes, create_output_folder, write_images, write_sheet
from asyncdiff.tasks.photos import PhotoWarning, to_bytes

MOVIE = "walk.gif"


@dataclass(frozen=True)
class Step:
    """State of a job after one sampling step.

    Attributes:
        state: state of the current batch.
        first: whether this is the first batch, the one shown in the movie.
        done: number of finished steps over all batches.
        total: estimated number of steps over all batches; None if unknown.
    """

    state: State
    first: bool
    done: int
    total: int | None


@dataclass(frozen=True)
class DrawJob:
    """Validated job of an image command; call `steps` to start sampling.

    Attributes:
        task: task built from the command's options.
        model: model with the sampler, codec and batch size from the options.
        requests: requests, one per image.
        folder: output folder.
        has_movie: whether a GIF of the first batch is written.
        record: YAML text that reproduces the images.
    """

    task: Task
    model: Any
    requests: Sequence[Request]
    folder: Path
    has_movie: bool
    record: str

    @property
    def movie(self) -> Path:
        """File of the GIF, which exists only if `has_movie`."""
        return self.folder / MOVIE

    @property
    def record_file(self) -> Path:
        """YAML file that reproduces the images."""
        return self.folder / RECORD

    def steps(self) -> Iterator[Step]:
        """Sample, yield the state after every step, and write all files except the contact sheet."""
        self.record_file.write_text(self.record)
        batches, before = self.task.batches(self.model, self.requests), 0
        movie = SamplingGIF() if self.has_movie else None
        for number, batch in enumerate(batches):
            state = None
            for state in self.task.states(self.model, batch):
                if movie is not None and number == 0:
                    movie.add(
                        to_bytes(state.images[:MAX_IMAGES]), None if state.t is None else state.t[:MAX_IMAGES].cpu()
                    )
                total = None if state.total is None else before + state.total * (len(batches) - number)
                yield Step(state, number == 0, before + state.done, total)
            assert state is not None, "a sampling trajectory has at least one state"
            write_images(state.images, batch, self.folder)
            before += state.done
        if movie is not None:
            movie.save(self.movie)


class Command(NamedTuple):
    """Definition of a command that generates images.

    Attributes:
        task: class of the task; its constructor arguments become options, with help from its docstring.
        description: introduction of the help text.
        seeds: default of --seeds.
    """

    task: type[Task]
    description: str
    seeds: str


COMMANDS = {
    "sample": Command(Generate, "Generate images with a trained model, one per seed.", "0-15"),
    "inpaint": Command(Inpaint, "Generate the unknown part of photos; the known pixels are kept bit for bit.", "0-3"),
    "edit": Command(
        Edit,
        "Edit photos: slightly where the map is dark, strongly where it is bright; black areas are kept bit for bit.",
        "0-3",
    ),
    "outpaint": Command(
        Outpaint,
        "Extend photos beyond their edges, in overlapping windows if the result exceeds the model's size.",
        "0-3",
    ),
    "autoregress": Command(
        Autoregress, "Generate images, or the unknown parts of photos, patch by patch in any order.", "0-3"
    ),
    "texture": Command(
        Texture, "Generate textures of any size in overlapping windows, from scratch or from an exemplar.", "0"
    ),
}


def main(command: str, argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`: parse its options, generate the images, and print where they were written.

    Args:
        command: name of the command.
        argv: arguments after the command name.
    """
    with print_photo_warnings():
        job = prepare_job(command, argv)
        requests, folder = job.requests, job.folder
        for note in collect_notes(requests):
            print(note)
        try:
            with tqdm(desc=job.task.name, unit="step", disable=None) as bar:
                for step in job.steps():
                    bar.total = step.total
                    bar.update(step.done - bar.n)
        except KeyboardInterrupt:
            written = len(list(folder.glob("*.png")))
            print(f"stopped after {written} of {len(requests)} images" + (f": {folder}" if written else ""))
            if not written:
                shutil.rmtree(folder)
            raise
        sheet = write_sheet(requests, folder)
    print(f"{len(requests)} {'image' if len(requests) == 1 else 'images'}: {folder}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")
    if job.has_movie:
        print(f"movie: {job.movie}")


def prepare_job(
    command: str,
    argv: Sequence[str],
    load: Callable[[Path, Any], Any] | None = None,
    extra_argv: Sequence[str] = (),
) -> DrawJob:
    """Parse a command line, load the model, and validate the request before sampling.

    Args:
        command: key of `COMMANDS`.
        argv: arguments after the command name.
        load: function that loads the model from (checkpoint, options); None for `load_model`.
        extra_argv: arguments that `load` has already applied, added to the record.

    Returns:
        The job, ready to run.
    """
    kind = COMMANDS[command].task
    parser = _parser(command)
    options = parser.instantiate(parser.parse_args([underscore_option(argument) for argument in argv]))
    seeds, labels = parse_integers("--seeds", options.seeds), _parse_labels(options.labels)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must differ, got {options.seeds}: equal seeds give equal images")
    task = kind(**{name: options[name] for name in inspect.signature(kind).parameters})
    checkpoint = find_checkpoint(options.run, options.ckpt_path)
    model = _configure((load or load_model)(checkpoint, options), options)
    requests = task.requests(model, seeds=seeds, labels=labels)
    if options.guidance is not None and any(request.label is None for request in requests):
        raise ValueError(
            f"--guidance needs class labels, got {options.guidance} without them: add --labels or drop --guidance"
        )
    run = run_directory_of(checkpoint)
    folder = create_output_folder(
        options.output or run / "predictions" / task.name, explicit=options.output is not None
    )
    repeated = [command, *split_option(argv, "--output")[0], *extra_argv, *trusted_packages.option_argv()]
    text = format_record(
        repeated, task, model, seeds=seeds, labels=labels, options=options, run=run, checkpoint=checkpoint
    )
    return DrawJob(task, model, requests, folder, options.gif, text)


def find_checkpoint(run: Path, ckpt_path: Path | None) -> Path:
    """Find the checkpoint named on the command line.

    Args:
        run: value of RUN: run directory, checkpoint file or exported folder.
        ckpt_path: value of --ckpt_path; None for RUN/checkpoints/last.ckpt.

    Returns:
        Path of the checkpoint; `run` itself if it is a checkpoint file or an export.
    """
    if run.is_file() or is_export(run):
        if ckpt_path is not None:
            raise ValueError(f"--ckpt_path is {ckpt_path}, but RUN is a checkpoint itself: drop --ckpt_path")
        return run
    if not run.exists():
        raise FileNotFoundError(
            f"RUN must be a run directory of train.py, a .ckpt file or an export, got {run}, which does not exist: "
            "check the path"
        )
    if ckpt_path is None and not (last := run / "checkpoints" / "last.ckpt").exists():
        below = sorted(str(path.parent.parent) for path in run.glob("*/checkpoints/last.ckpt"))
        remedy = f"use {' or '.join(below[:4])}" if below else "choose another checkpoint with --ckpt_path FILE"
        raise FileNotFoundError(f"RUN must contain checkpoints/last.ckpt, got {run} without it: {remedy}")
    return ckpt_path or last


def run_directory_of(checkpoint: Path) -> Path:
    """Return the run directory of a checkpoint: the parent of `checkpoints`, else its folder; an export is its own."""
    if is_export(checkpoint):
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def parse_integers(name: str, text: str) -> list[int]:
    """Parse a list of integers such as 0,3,8-15; raise ValueError that names the option `name`."""
    integers: list[int] = []
    for part in text.strip("[]").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"{name} must be integers such as 0,3,8-15, got {text}")
        integers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return integers


@contextmanager
def print_photo_warnings() -> Iterator[None]:
    """Print each warning about a photo as one line; leave other warnings unchanged."""
    original = warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if category is PhotoWarning:
            tqdm.write(f"warning: {message}", file=sys.stderr)
        else:
            original(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PhotoWarning)
        warnings.showwarning = show
        yield


def _configure(model: Any, options: Any) -> Any:
    """Set the model's sampler and batch size from the options."""
    sampler = options.get("sampler") or model.sampler
    values = {name: options.get(name) for name in ("steps", "refresh", "margin")}
    values["guidance"] = _guidance(sampler, options)
    changes = {name: value for name, value in values.items() if value is not None}
    model.sampler = with_arguments(sampler, **changes) if changes else sampler
    model.predict = replace(model.predict, batch_size=options.batch_size)
    return model


def _guidance(sampler: ImageSampler, options: Any) -> list[Guidance] | None:
    """Return the sampler's guidance with the rules set by the options replaced; None if the options set none."""
    if options.input_level is not None and options.input_guidance is None:
        raise ValueError(
            f"--input_level needs --input_guidance, got {options.input_level} without it: add --input_guidance"
        )
    requested: list[Guidance] = []
    if options.guidance is not None:
        requested.append(ClassifierFree(options.guidance))
    if options.input_guidance is not None:
        level = {} if options.input_level is None else {"level": options.input_level}
        requested.append(InputGuidance(options.input_guidance, **level))
    kinds = tuple(type(rule) for rule in requested)
    return [*(rule for rule in sampler.guidance if not isinstance(rule, kinds)), *requested] if requested else None


def _parse_labels(text: str | None) -> list[int] | None:
    """Parse --labels: an empty list for "none", None if the option is omitted."""
    return None if text is None else [] if text == "none" else parse_integers("--labels", text)


def _parser(command: str) -> ReportingParser:
    kind, description, seeds = COMMANDS[command]
    parser = command_parser(command, description)
    parser.add_argument("run", type=Path, help=RUN)
    parser.add_class_arguments(kind)
    parser.add_argument("--seeds", type=str, default=seeds, help=SEEDS)
    parser.add_argument("--labels", type=str | None, help=LABELS)
    if kind is not Autoregress:  # it has its own sampler
        parser.add_argument("--sampler", type=ImageSampler | None, sub_configs=True, help=SAMPLER)
        parser.add_argument("--steps", type=int | None, help="number of sampling steps (default: the sampler's)")
    parser.add_argument("--guidance", type=float | None, help="scale of classifier-free guidance; 1 means no guidance")
    parser.add_argument("--input_guidance", type=float | None, help=INPUT_GUIDANCE)
    parser.add_argument("--input_level", type=float | None, help=INPUT_LEVEL)
    parser.add_argument("--refresh", type=int | None, help=REFRESH)
    parser.add_argument("--margin", type=int | None, help=MARGIN)
    parser.add_argument("--batch_size", type=int, default=64, help="number of images or windows per batch")
    parser.add_argument("--output", type=Path | None, help="output folder (default: RUN/predictions/TASK, numbered)")
    parser.add_argument("--gif", action="store_true", help=GIF)
    add_model(parser)
    return parser


SEEDS = "random seeds, such as 0,1,2 or 0-15: one image per seed, or per photo and seed"
LABELS = """class labels such as 0,1,2: one per photo, or one per seed without photos, repeated if there are fewer; none
means unconditional (default: all classes for new images, none for photos and textures)"""
GIF = f"also write a GIF that shows how the first {MAX_IMAGES} images and their level maps evolve"
INPUT_GUIDANCE = "strength of guidance by the known pixels; 0 means no guidance"
INPUT_LEVEL = "noise level that input guidance adds to the known pixels (default: 0.5)"
REFRESH = """recompute all patches every REFRESH steps, and only the changing ones in between: faster, approximate
(default: the sampler's)"""
MARGIN = "with --refresh, also recompute patches within this distance of changing ones (default: the sampler's)"
