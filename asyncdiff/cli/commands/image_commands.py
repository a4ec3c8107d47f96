"""Commands that generate images: `sample`, `inpaint`, `edit`, `outpaint`, `autoregress` and `texture`.

The options are checked before PyTorch is imported; `asyncdiff.cli.jobs.draw` then draws.
"""

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncdiff import tasks
from asyncdiff.checks import MAX_GUIDANCE, MAX_IMAGES, MAX_SEED, MAX_STEPS, at_least, check_seeds
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.command_parser import CommandLine, CommandParser, split_option, underscore_option
from asyncdiff.cli.commands.shared.options import RUN, SAMPLER, add_model, load_model, parse_integers
from asyncdiff.cli.commands.shared.runs import find_checkpoint, run_directory_of
from asyncdiff.foreign_text import MAX_NOTE, visible
from asyncdiff.tasks.arguments import check_output_folder, parse_size, photo_files

if TYPE_CHECKING:
    from asyncdiff.cli.jobs.draw import DrawJob

# Numbers that are checked before the model is loaded: name, minimum, maximum, remedy.
RANGES = (
    ("batch_size", 1, MAX_IMAGES, "set the number of images sampled together"),
    ("steps", 1, MAX_STEPS, "use 50, for example"),
    ("steps_per_patch", 1, MAX_STEPS, "16 is the default"),
    ("guidance", 0, MAX_GUIDANCE, "1 turns guidance off, 1.5 to 4 are typical"),
    ("input_guidance", 0, MAX_GUIDANCE, "0 turns guidance off, 0.5 to 2 are typical"),
    ("refresh", 1, None, "1 computes all patches in every step"),
    ("margin", 0, None, "0 computes only patches that move"),
    ("mask_seed", 0, MAX_SEED, "0 is the default"),
)


class Command(NamedTuple):
    """Definition of a command that generates images.

    Attributes:
        task: class of the task; its constructor arguments become options, with help from its docstring.
        description: introduction of the help text.
        seeds: default of --seeds.
    """

    task: type[tasks.Task]
    description: str
    seeds: str


COMMANDS = {
    "sample": Command(tasks.Generate, "Generate images with a trained model, one per seed.", "0-15"),
    "inpaint": Command(
        tasks.Inpaint, "Generate the unknown part of photos; the known pixels are kept bit for bit.", "0-3"
    ),
    "edit": Command(
        tasks.Edit,
        "Edit photos: slightly where the map is dark, strongly where it is bright; black areas are kept bit for bit.",
        "0-3",
    ),
    "outpaint": Command(
        tasks.Outpaint,
        "Extend photos beyond their edges, in overlapping windows if the result exceeds the model's size.",
        "0-3",
    ),
    "autoregress": Command(
        tasks.Autoregress, "Generate images, or the unknown parts of photos, patch by patch in any order.", "0-3"
    ),
    "texture": Command(
        tasks.Texture, "Generate textures of any size in overlapping windows, from scratch or from an exemplar.", "0"
    ),
}


@dataclass(frozen=True)
class DrawArguments:
    """Checked arguments of an image command.

    Attributes:
        argv: command line that repeats the command, without its output folder.
        options: values of the options.
        task: task built from the options.
        seeds: different random seeds.
        labels: class labels; an empty list means unconditional, None the task's default.
        checkpoint: existing checkpoint or export.
        run: directory of the run.
    """

    argv: Sequence[str]
    options: Any
    task: tasks.Task
    seeds: list[int]
    labels: list[int] | None
    checkpoint: Path
    run: Path

    @classmethod
    def parse(cls, command: str, argv: Sequence[str]) -> "DrawArguments":
        """Parse a command line, and check everything that needs no model.

        Args:
            command: key of `COMMANDS`.
            argv: arguments after the command name.

        Returns:
            The arguments.

        Raises:
            UsageError: an option or its value is not valid.
            ValueError: options contradict each other, or the output folder is in use.
            FileNotFoundError: the checkpoint does not exist.
        """
        kind, description, _ = COMMANDS[command]
        dashed = [underscore_option(argument) for argument in argv]
        line = CommandLine(command, description, lambda parser: _declare(parser, command), dashed)
        plain = line.plain
        seeds, labels = parse_integers("--seeds", plain.seeds), _parse_labels(plain.labels)
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"--seeds must differ, got {plain.seeds}: equal seeds give equal images")
        check_seeds("--seeds", seeds)
        for name, least, most, remedy in RANGES:
            if plain.get(name) is not None:
                at_least(name, plain[name], least, remedy, most)
        for name in ("size", "to", "piece"):
            if plain.get(name) is not None:
                parse_size(name, plain[name])
        if plain.input_level is not None and plain.input_guidance is None:
            raise ValueError(
                f"--input_level needs --input_guidance, got {plain.input_level} without it: add --input_guidance"
            )
        if not line.has_objects:
            _build_task(kind, plain)  # numbers are checked before files are looked for
        checkpoint = find_checkpoint(plain.run, plain.ckpt_path)
        default = run_directory_of(checkpoint) / "predictions"
        check_output_folder(plain.output or default, explicit=plain.output is not None)
        for name in ("image", "exemplar"):
            if plain.get(name) is not None:
                photo_files(name, plain[name])
        options = line.build()
        task = _build_task(kind, options)
        repeated = [command, *split_option(argv, "--output")[0], *trusted_packages.option_argv()]
        return cls(repeated, options, task, seeds, labels, checkpoint, run_directory_of(checkpoint))


def _build_task(kind: type[tasks.Task], options: Any) -> tasks.Task:
    return kind(**{name: options[name] for name in inspect.signature(kind).parameters})


def main(command: str, argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`: parse its options, generate the images, and print where they were written.

    Args:
        command: name of the command.
        argv: arguments after the command name.
    """
    arguments = DrawArguments.parse(command, argv)
    from asyncdiff.cli.jobs.draw import prepare_job  # imports PyTorch

    with print_photo_warnings():
        job = prepare_job(arguments, load_model(arguments.checkpoint, arguments.options))
        for note in job.notes():
            print(visible(note, MAX_NOTE))
        _draw(job)
    count = len(job.requests)
    print(f"{count} {'image' if count == 1 else 'images'}: {job.folder}")
    if (sheet := job.write_sheet()) is not None:
        print(f"contact sheet: {sheet}")
    if job.movie is not None:
        print(f"movie: {job.movie}")


def _draw(job: "DrawJob") -> None:
    """Draw with a progress bar; after Ctrl-C, print how many images are complete."""
    from tqdm import tqdm

    try:
        # In one context, in which the weights are converted to its precision once, not in every step.
        with job.model.sampling_context(), tqdm(desc=job.task.name, unit="step", disable=None) as bar:
            for state in job.steps():
                bar.total = state.total
                bar.update(state.done - bar.n)
    except KeyboardInterrupt:
        written = len(list(job.folder.glob("*.png")))
        print(f"stopped after {written} of {len(job.requests)} images" + (f": {job.folder}" if written else ""))
        raise


@contextmanager
def print_photo_warnings() -> Iterator[None]:
    """Print each warning about a photo as one line; leave other warnings unchanged."""
    from tqdm import tqdm

    from asyncdiff.tasks.photos import PhotoWarning

    original = warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if category is PhotoWarning:
            tqdm.write(f"warning: {visible(message, MAX_NOTE)}", file=sys.stderr)
        else:
            original(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PhotoWarning)
        warnings.showwarning = show
        yield


def _parse_labels(text: str | None) -> list[int] | None:
    """Parse --labels: an empty list for "none", None if the option is omitted."""
    return None if text is None else [] if text == "none" else parse_integers("--labels", text)


def _declare(parser: CommandParser, command: str) -> None:
    kind, _, seeds = COMMANDS[command]
    parser.add_argument("run", type=Path, help=RUN)
    parser.add_constructor(kind)
    parser.add_argument("--seeds", type=str, default=seeds, help=SEEDS)
    parser.add_argument("--labels", type=str | None, help=LABELS)
    if kind is not tasks.Autoregress:  # it has its own sampler
        parser.add_object("--sampler", "asyncdiff.sampling.ImageSampler", help=SAMPLER)
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


SEEDS = "random seeds, such as 0,1,2 or 0-15: one image per seed, or per photo and seed"
LABELS = """class labels such as 0,1,2: one per photo, or one per seed without photos, repeated if there are fewer; none
means unconditional (default: all classes for new images, none for photos and textures)"""
GIF = "also write a GIF that shows how the first 6 images and their level maps evolve"
INPUT_GUIDANCE = "strength of guidance by the known pixels; 0 means no guidance"
INPUT_LEVEL = "noise level that input guidance adds to the known pixels (default: 0.5)"
REFRESH = """recompute all patches every REFRESH steps, and only the changing ones in between: faster, approximate
(default: the sampler's)"""
MARGIN = "with --refresh, also recompute patches within this distance of changing ones (default: the sampler's)"
