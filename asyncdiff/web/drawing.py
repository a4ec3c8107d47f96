"""Draw requests in the drawing process, and what it reports: previews, results and errors."""

import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from asyncdiff.tasks import Request, State
from asyncdiff.tasks.photos import collect_warnings, to_bytes
from asyncdiff.web.draw_request import DrawRequest

PREVIEW_INTERVAL = 0.1  # minimum seconds between previews
# Minimum time between previews as a multiple of a preview's duration, which may include decoding latents.
PREVIEW_COST = 4
PREVIEW_SIDE = 512  # maximum side of a preview; larger images are reduced
ABSOLUTE = re.compile(r"""(?<![^\s"'(=])/\S*/""")  # folders of an absolute path


@runtime_checkable
class Drawing(Protocol):
    """Validated request, as `asyncdiff.cli.jobs.draw.DrawJob`: draws and writes its files."""

    @property
    def folder(self) -> Path:
        """Folder of the files."""

    @property
    def requests(self) -> Sequence[Request]:
        """Requests, one per image."""

    @property
    def movie(self) -> Path | None:
        """File of the GIF; None if none is written."""

    @property
    def record_file(self) -> Path:
        """YAML file that reproduces the images."""

    def steps(self) -> Iterator[State]:
        """Draw, and write the files; yield the state after every step, with the steps of all batches."""


# Turns a request into a drawing that writes into the folder, and the equivalent command line; raises ValueError or
# OSError for an invalid request.
Plan = Callable[[DrawRequest, Path], tuple[Drawing, str]]


@dataclass(frozen=True)
class Preview:
    """Intermediate images of a running job.

    Attributes:
        images: 8-bit pixels.
        levels: noise level of each patch; None for images sampled window by window.
        done: number of finished steps.
        total: total number of steps; None if unknown.
    """

    images: UInt8[Tensor, "b c h w"]
    levels: Float[Tensor, "b gh gw"] | None
    done: int
    total: int | None


@dataclass(frozen=True)
class Result:
    """Files of a finished job.

    Attributes:
        images: image files, in the order of their seeds.
        gif: GIF of the sampling trajectory, or None.
        command: command line that draws the same images.
        record: YAML file that reproduces the images with `train.py predict`.
        notes: unexpected changes to the photo, such as cropping.
        seconds: duration of the job.
    """

    images: list[Path]
    gif: Path | None
    command: str
    record: Path
    notes: list[str]
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Reason why a job could not be finished.

    Attributes:
        message: one line.
    """

    message: str


@dataclass(frozen=True)
class Stopped:
    """The job was stopped between two steps."""


Report = Preview | Result | Failure | Stopped


def draw(plan: Plan, request: DrawRequest, folder: Path, stopping: Callable[[], bool]) -> Iterator[Report]:
    """Plan, sample and write the files of a request.

    Args:
        plan: function that turns the request into a drawing.
        request: request to carry out.
        folder: folder of the files.
        stopping: function that returns whether to stop before the next step.

    Yields:
        Previews, and finally the result or the reason why there is none.
    """
    started = time.monotonic()
    try:
        with collect_warnings() as notes:
            drawing, command = plan(request, folder)
            for preview in _sample(drawing):
                if stopping():
                    yield Stopped()
                    return
                if preview is not None:
                    yield preview
        files = [drawing.folder / f"{request.name}.png" for request in drawing.requests]
        seconds = time.monotonic() - started
        notes = [without_folders(note, folder) for note in notes]
        yield Result(files, drawing.movie, command, drawing.record_file, notes, seconds)
    except (ValueError, OSError) as error:
        yield Failure(message_for_visitors(error, folder))
    except Exception as error:  # a bug: the process continues with the next job
        traceback.print_exc()
        yield Failure(f"{type(error).__name__}: see the server's terminal for details")


def message_for_visitors(error: ValueError | OSError, folder: Path) -> str:
    """Return an error in one line, without the server's folders."""
    reason = getattr(error, "strerror", None)
    return f"the server cannot write the images: {reason}" if reason else without_folders(str(error), folder)


def without_folders(text: str, folder: Path) -> str:
    """Return text in one line with the names alone of files in a folder, and of those with an absolute path."""
    return ABSOLUTE.sub("", " ".join(text.split()).replace(f"{folder}/", ""))


def _sample(drawing: Drawing) -> Iterator[Preview | None]:
    """Run the sampling steps; yield a preview, or None if it is too early for the next one, after each."""
    next_preview = 0.0
    for state in drawing.steps():
        started = time.monotonic()
        if started < next_preview and state.done != state.total:
            yield None
            continue
        levels = None if state.t is None else state.t.float().cpu()
        yield Preview(_reduced(to_bytes(state.images)), levels, state.done, state.total)
        next_preview = started + max(PREVIEW_INTERVAL, PREVIEW_COST * (time.monotonic() - started))


def _reduced(images: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h2 w2"]:
    """Reduce images whose longer side exceeds `PREVIEW_SIDE` to it."""
    height, width = images.shape[2:]
    if max(height, width) <= PREVIEW_SIDE:
        return images
    size = [max(1, side * PREVIEW_SIDE // max(height, width)) for side in (height, width)]
    return F.interpolate(images.float(), size, mode="area").round().byte()
