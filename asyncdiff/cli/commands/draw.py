"""What `sample`, `inpaint`, `edit`, `outpaint`, `autoregress` and `texture` share: checkpoint, task and folder."""

import inspect
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.export import is_export
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.options import CODEC, add_device, add_weights, command_parser, with_codec, with_underscores
from asyncdiff.cli.commands.reproduce import RECORD, record
from asyncdiff.cli.errors import ReportingParser
from asyncdiff.evaluation.figures.sampling_gif import SHOWN, SamplingGIF
from asyncdiff.latents import Codec
from asyncdiff.sampling import (
    adaptive,  # noqa: F401  their samplers may be named without the module
    look_ahead,  # noqa: F401  their samplers may be named without the module
    repaint,  # noqa: F401  their samplers may be named without the module
)
from asyncdiff.sampling.guidance import ClassifierFree, Guidance, InputGuidance
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks import Autoregress, Edit, Generate, Inpaint, Outpaint, Request, State, Task, Texture
from asyncdiff.tasks.contact_sheet import fresh_folder, notes_of, write, write_sheet
from asyncdiff.tasks.photos import PhotoWarning, to_bytes

MOVIE = "walk.gif"


@dataclass(frozen=True)
class Step:
    """One state of a drawing.

    Attributes:
        state: of the batch that is being drawn.
        first: whether it is the first batch, the one that is filmed.
        done: steps of all batches so far.
        total: of these, about; None where the sampler cannot tell.
    """

    state: State
    first: bool
    done: int
    total: int | None


@dataclass(frozen=True)
class Drawing:
    """Pictures that the words of a command ask for: all that can be refused was, and nothing is drawn yet.

    Attributes:
        task: what is drawn.
        model: that draws, as the words say.
        requests: the pictures.
        folder: for the files.
        filmed: whether there is to be a movie.
        record: how they are made, as a file of YAML.
    """

    task: Task
    model: Any
    requests: Sequence[Request]
    folder: Path
    filmed: bool
    record: str

    @property
    def movie(self) -> Path:
        """The file of the movie, where there is one."""
        return self.folder / MOVIE

    @property
    def recorded(self) -> Path:
        """The file that says how they are made."""
        return self.folder / RECORD

    def steps(self) -> Iterator[Step]:
        """Every state; after the last one all files but the sheet are written."""
        self.recorded.write_text(self.record)
        batches, movie, before = self.task.batches(self.model, self.requests), SamplingGIF() if self.filmed else None, 0
        for number, batch in enumerate(batches):
            state = None
            for state in self.task.states(self.model, batch):
                if movie is not None and number == 0:
                    movie.add(to_bytes(state.images[:SHOWN]), None if state.t is None else state.t[:SHOWN].cpu())
                total = None if state.total is None else before + state.total * (len(batches) - number)
                yield Step(state, number == 0, before + state.done, total)
            assert state is not None, "a walk has at least one state"
            write(state.images, batch, self.folder)
            before += state.done
        if movie is not None:
            movie.save(self.movie)


class Command(NamedTuple):
    """A command that draws.

    Attributes:
        task: what it draws; the arguments of its constructor are options, with the help of its docstring.
        description: first lines of the help.
        seeds: drawn by default.
    """

    task: type[Task]
    description: str
    seeds: str


COMMANDS = {
    "sample": Command(Generate, "Draw whole images with a trained model, one per seed.", "0-15"),
    "inpaint": Command(Inpaint, "Draw a part of photos anew; what is known of them stays bit for bit.", "0-3"),
    "edit": Command(
        Edit, "Change photos: little where a map is dark grey, more where it is bright; black stays bit for bit.", "0-3"
    ),
    "outpaint": Command(
        Outpaint,
        "Continue photos beyond their edges, window by window where the result exceeds the model's size.",
        "0-3",
    ),
    "autoregress": Command(
        Autoregress, "Draw images, or missing parts of photos, patch after patch in any order.", "0-3"
    ),
    "texture": Command(Texture, "Draw textures of any size, window by window, from an exemplar or from nothing.", "0"),
}


def main(command: str, argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`: parse its options, draw, write the images and print where they are.

    Args:
        command: its name.
        argv: its command line, without the name.
    """
    with plain_warnings():
        drawing = drawing_of(command, argv)
        requests, folder = drawing.requests, drawing.folder
        for note in notes_of(requests):
            print(note)
        try:
            with tqdm(desc=drawing.task.name, unit="step", disable=None) as bar:
                for step in drawing.steps():
                    bar.total = step.total
                    bar.update(step.done - bar.n)
        except KeyboardInterrupt:
            there = len(list(folder.glob("*.png")))
            print(f"stopped with {there} of {len(requests)} pictures" + (f": {folder}" if there else ""))
            if not there:
                shutil.rmtree(folder)
            raise
        sheet = write_sheet(requests, folder)
    print(f"{len(requests)} {'picture' if len(requests) == 1 else 'pictures'}: {folder}")
    if sheet is not None:
        print(f"sheet: {sheet}")
    if drawing.filmed:
        print(f"movie: {drawing.movie}")


def drawing_of(
    command: str,
    words: Sequence[str],
    load: Callable[[Path, Any], Any] | None = None,
    more: Sequence[str] = (),
) -> Drawing:
    """What the words of a command ask for, read and checked.

    Args:
        command: a name of `COMMANDS`.
        words: its command line, without the name.
        load: makes the model of a checkpoint and the options; `loaded` by default.
        more: words that `load` has heeded already, for the record.
    """
    kind = COMMANDS[command].task
    parser = _parser(command)
    options = parser.instantiate(parser.parse_args([with_underscores(word) for word in words]))
    given_seeds, labels = numbers("--seeds", options.seeds), _labels(options.labels)
    if len(set(given_seeds)) < len(given_seeds):
        raise ValueError(f"--seeds must differ, got {options.seeds}: equal ones give the same picture")
    task = kind(**{name: options[name] for name in inspect.signature(kind).parameters})
    checkpoint = checkpoint_of(options.run, options.ckpt_path)
    model = _adjusted((load or loaded)(checkpoint, options), options)
    requests = task.requests(model, seeds=given_seeds, labels=labels)
    if options.guidance is not None and any(request.label is None for request in requests):
        raise ValueError("--guidance must be given with labels to be guided by, got none: add --labels")
    usual = run_of(checkpoint) / "predictions" / task.name
    folder = fresh_folder(options.output or usual, given=options.output is not None)
    said = [command, *without(words, "--output"), *more, *trusted_packages.option()]
    run = run_of(checkpoint)
    made = record(said, task, model, seeds=given_seeds, labels=labels, options=options, run=run, checkpoint=checkpoint)
    return Drawing(task, model, requests, folder, options.gif, made)


def without(words: Sequence[str], option: str) -> list[str]:
    """The words but for an option and its value."""
    left: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == option:
            next(waiting, None)
        elif not word.startswith(f"{option}="):
            left.append(word)
    return left


def checkpoint_of(run: Path, ckpt_path: Path | None) -> Path:
    """The checkpoint of a run directory, or the file or the export itself."""
    if run.is_file() or is_export(run):
        if ckpt_path is not None:
            raise ValueError(f"--ckpt_path must be left out where RUN is a checkpoint itself, got {ckpt_path}")
        return run
    if not run.exists():
        raise FileNotFoundError(
            f"RUN must be a run directory of train.py, a .ckpt file or an export, got {run}: there is none"
        )
    if ckpt_path is None and not (last := run / "checkpoints" / "last.ckpt").exists():
        below = sorted(str(path.parent.parent) for path in run.glob("*/checkpoints/last.ckpt"))
        remedy = f"runs below it are {', '.join(below[:4])}" if below else "--ckpt_path FILE names another"
        raise FileNotFoundError(f"RUN must hold checkpoints/last.ckpt, got {run} without: {remedy}")
    return ckpt_path or last


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; its own folder where that is not named checkpoints.

    An export is a folder itself.
    """
    if is_export(checkpoint):
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def numbers(name: str, text: str) -> list[int]:
    """The numbers of a word such as 0,3,8-15; ValueError with the option's `name`."""
    listed: list[int] = []
    for part in text.strip("[]").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"{name} must be whole numbers such as 0,3,8-15, got {text}")
        listed += range(int(match[1]), int(match[2] or match[1]) + 1)
    return listed


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings about photos as one line each; others as usual."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if category is PhotoWarning:
            tqdm.write(f"warning: {message}", file=sys.stderr)
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PhotoWarning)
        warnings.showwarning = show
        yield


def altered(sampler: ImageSampler, allow: Sequence[str] = ("asyncdiff",), **changes: Any) -> ImageSampler:
    """The sampler built anew with some arguments changed; ValueError where it has no such argument."""
    described = object_config.describe(sampler)
    for name, value in changes.items():
        if name not in described["init_args"]:
            raise ValueError(
                f"--{name} must be left out for {type(sampler).__name__}, which has no {name}: it is fixed"
            )
        described["init_args"][name] = object_config.describe(value)
    built: ImageSampler = object_config.build(described, allow)
    return built


def loaded(checkpoint: Path, options: Any) -> Any:
    """The model of a checkpoint, on the device and with the weights that the options name."""
    from asyncdiff.training.module import AsyncDiffusion  # late: it loads Lightning

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that this machine has, got {options.device}: use cpu") from error
    model: Any = AsyncDiffusion.load_from_checkpoint(
        checkpoint, options.device, weights=options.weights, allow=_allowed()
    )
    return model


def _adjusted(model: Any, options: Any) -> Any:
    """The model, drawing as the options say."""
    with_codec(model, options.codec)
    sampler = options.get("sampler") or model.sampler
    given = {name: options.get(name) for name in ("steps", "refresh", "margin")}
    given["guidance"] = _guidance(sampler, options)
    changes = {name: value for name, value in given.items() if value is not None}
    model.sampler = altered(sampler, _allowed(), **changes) if changes else sampler
    model.predict_batch_size = options.batch_size
    return model


def _allowed() -> list[str]:
    return ["asyncdiff", *trusted_packages.extra()]


def _guidance(sampler: ImageSampler, options: Any) -> list[Guidance] | None:
    """The sampler's guidance with what the options say in place of the same kind; None if they say nothing."""
    if options.input_level is not None and options.input_guidance is None:
        raise ValueError(f"--input_level must be given with --input_guidance, got {options.input_level} alone: add it")
    said: list[Guidance] = []
    if options.guidance is not None:
        said.append(ClassifierFree(options.guidance))
    if options.input_guidance is not None:
        level = {} if options.input_level is None else {"level": options.input_level}
        said.append(InputGuidance(options.input_guidance, **level))
    kinds = tuple(type(rule) for rule in said)
    return [*(rule for rule in sampler.guidance if not isinstance(rule, kinds)), *said] if said else None


def _labels(text: str | None) -> list[int] | None:
    """Classes in turn; an empty list for "none"."""
    return None if text is None else [] if text == "none" else numbers("--labels", text)


def _parser(command: str) -> ReportingParser:
    kind, description, seeds = COMMANDS[command]
    parser = command_parser(command, description)
    parser.add_argument("run", type=Path, help="a run directory of train.py, a .ckpt file or an exported folder")
    parser.add_class_arguments(kind)
    parser.add_argument("--seeds", type=str, default=seeds, help="one picture each, such as 0,1,2 or 0-15")
    parser.add_argument("--labels", type=str | None, help=LABELS)
    if kind is not Autoregress:  # which is a sampler itself
        parser.add_argument("--sampler", type=ImageSampler | None, sub_configs=True, help=SAMPLER)
        parser.add_argument("--steps", type=int | None, help="of the sampler; its own by default")
    parser.add_argument("--codec", type=Codec | None, sub_configs=True, help=CODEC)
    parser.add_argument("--guidance", type=float | None, help="scale of classifier-free guidance; 1 is off")
    parser.add_argument("--input_guidance", type=float | None, help="strength of guidance by what is given; 0 is off")
    parser.add_argument("--input_level", type=float | None, help="its level of added noise; 0.5 by default")
    parser.add_argument("--refresh", type=int | None, help="evaluations between those that compute all patches")
    parser.add_argument("--margin", type=int | None, help="patches around moving ones that are computed in between")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures or windows that are drawn together")
    parser.add_argument("--output", type=Path | None, help="folder; RUN/predictions/TASK, numbered, by default")
    parser.add_argument("--gif", action="store_true", help=f"also a movie of the first {SHOWN} and their level maps")
    parser.add_argument("--ckpt_path", type=Path | None, help="RUN/checkpoints/last.ckpt by default")
    add_weights(parser)
    add_device(parser)
    return parser


LABELS = """classes in turn, over the photos or else over the seeds, such as 0,1,2; none tells none. By default whole
images have all classes in turn, photos and textures none"""
SAMPLER = "a class of asyncdiff.sampling.ImageSampler or a YAML file of one; the run's own by default"
