"""What `sample`, `inpaint`, `outpaint`, `autoregress` and `texture` share: a checkpoint, a task, and a folder."""

import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from asyncdiff import adaptive, look_ahead, recipe, repaint  # noqa: F401  their samplers may be named without the module
from asyncdiff.cli_errors import ReportingParser
from asyncdiff.codecs import Codec
from asyncdiff.commands.parsing import CODEC, command_parser, with_codec
from asyncdiff.guidance import ClassifierFree, Guidance, InputGuidance
from asyncdiff.photos import PhotoWarning, to_bytes
from asyncdiff.plots.walk_movie import SHOWN, WalkMovie
from asyncdiff.predictions import Autoregress, Request, Task
from asyncdiff.predictions.album import fresh_folder, write, write_sheet
from asyncdiff.sampling import ImageSampler

MOVIE = "walk.gif"


def draw(command: str, kind: type[Task], description: str, seeds: str, words: Sequence[str]) -> None:
    """Read the words, draw, write, and tell where the pictures are.

    Args:
        command: its name.
        kind: of task; its constructor's arguments are options, told by its docstring.
        description: for the help.
        seeds: by default.
        words: of the command line.
    """
    parser = _parser(command, kind, description, seeds)
    options = parser.instantiate(parser.parse_args([_with_underscores(word) for word in words]))
    with plain_warnings():
        given_seeds, labels = numbers("--seeds", options.seeds), _labels(options.labels)
        if len(set(given_seeds)) < len(given_seeds):
            raise ValueError(f"--seeds must differ, got {options.seeds}: equal ones give the same picture")
        task = kind(**{name: options[name] for name in inspect.signature(kind).parameters})
        checkpoint = checkpoint_of(options.run, options.ckpt_path)
        model = _model(checkpoint, options)
        requests = task.requests(model, seeds=given_seeds, labels=labels)
        if options.guidance is not None and any(request.label is None for request in requests):
            raise ValueError("--guidance must be given with labels to be guided by, got none: add --labels")
        usual = run_of(checkpoint) / "predictions" / task.name
        folder = fresh_folder(options.output or usual, given=options.output is not None)
        for note in dict.fromkeys(request.note for request in requests if request.note):
            print(note)
        _draw_all(task, model, requests, folder, WalkMovie() if options.gif else None)


def checkpoint_of(run: Path, ckpt_path: Path | None) -> Path:
    """The checkpoint of a run directory, or the file itself."""
    if run.is_file():
        if ckpt_path is not None:
            raise ValueError(f"--ckpt_path must be left out where RUN is a checkpoint itself, got {ckpt_path}")
        return run
    if not run.exists():
        raise FileNotFoundError(f"RUN must be a run directory of train.py or a .ckpt file, got {run}: there is none")
    return ckpt_path or run / "checkpoints" / "last.ckpt"


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; its own folder where that is not named checkpoints."""
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
    described = recipe.describe(sampler)
    for name, value in changes.items():
        if name not in described["init_args"]:
            raise ValueError(
                f"--{name} must be left out for {type(sampler).__name__}, which has no {name}: it is fixed"
            )
        described["init_args"][name] = recipe.describe(value)
    built: ImageSampler = recipe.build(described, allow)
    return built


def _draw_all(task: Task, model: Any, requests: Sequence[Request], folder: Path, movie: WalkMovie | None) -> None:
    batches = task.batches(model, requests)
    with tqdm(desc=task.name, unit="step", disable=None) as bar:
        for number, batch in enumerate(batches):
            start = bar.n
            for state in task.states(model, batch):
                bar.total = None if state.total is None else start + state.total * (len(batches) - number)
                bar.update(start + state.done - bar.n)
                if movie is not None and number == 0:
                    movie.add(to_bytes(state.images[:SHOWN]), None if state.t is None else state.t[:SHOWN].cpu())
            write(state.images, batch, folder)
    sheet = write_sheet(requests, folder)
    print(f"{len(requests)} {'picture' if len(requests) == 1 else 'pictures'}: {folder}")
    if sheet is not None:
        print(f"sheet: {sheet}")
    if movie is not None:
        movie.save(folder / MOVIE)
        print(f"movie: {folder / MOVIE}")


def _model(checkpoint: Path, options: Any) -> Any:
    """The model of the checkpoint, drawing as the options say."""
    from asyncdiff.module import AsyncDiffusion  # late: it loads Lightning

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that this machine has, got {options.device}: use cpu") from error
    allow = ["asyncdiff", *options.allow]
    model: Any = AsyncDiffusion.load_from_checkpoint(checkpoint, options.device, weights=options.weights, allow=allow)
    with_codec(model, options.codec)
    sampler = options.get("sampler") or model.sampler
    given = {name: options.get(name) for name in ("steps", "refresh", "margin")}
    given["guidance"] = _guidance(sampler, options)
    changes = {name: value for name, value in given.items() if value is not None}
    model.sampler = altered(sampler, allow, **changes) if changes else sampler
    model.predict_batch_size = options.batch_size
    return model


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


def _with_underscores(word: str) -> str:
    """Options may be spelt with dashes, too."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _parser(command: str, kind: type[Task], description: str, seeds: str) -> ReportingParser:
    parser = command_parser(command, description)
    parser.add_argument("run", type=Path, help="a run directory of train.py, or a .ckpt file")
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
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto")
    parser.add_argument("--device", type=str, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--allow", type=list[str], default=[], help="packages whose classes a checkpoint may name")
    return parser


LABELS = """classes in turn, over the photos or else over the seeds, such as 0,1,2; none tells none. By default whole
images have all classes in turn, photos and textures none"""
SAMPLER = "a class of asyncdiff.sampling.ImageSampler or a YAML file of one; the run's own by default"
