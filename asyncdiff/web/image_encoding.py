"""HTML of previews and results, with images embedded as data URLs."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from asyncdiff.tasks.photos import to_pillow
from asyncdiff.web.drawing import Preview, Result
from asyncdiff.web.job_queue import Job
from asyncdiff.web.request_cost import format_duration

# Approximate length of an image's longer side in CSS pixels, for one, two, or three and more images in a row, and for
# an image next to its level map. Larger images are shown at their own size, up to LARGEST.
ONE, TWO, SEVERAL, PAIR, LARGEST = 448, 224, 146, 108, 512
LARGEST_GIF = 20 * 2**20  # bytes of a GIF that is embedded in the page
SQUARE = 4  # CSS pixels per image pixel from which on pixels are drawn as sharp squares

EMPTY = '<div class="nothing">Images appear here while they are drawn, next to the noise level of each patch.</div>'


def data_url(pixels: UInt8[Tensor, "c h w"]) -> str:
    """Encode an image as the data URL of a PNG file."""
    data = BytesIO()
    to_pillow(pixels).save(data, "PNG")
    return _url("image/png", data.getvalue())


def level_map_pixels(levels: Float[Tensor, "gh gw"]) -> UInt8[Tensor, "1 gh gw"]:
    """Return a level map as 8-bit pixels: black = clean, white = noise."""
    return (levels.clamp(0, 1) * 255).round().byte()[None]


def waiting_html(jobs_ahead: int, seconds: float = 0.0) -> str:
    """Format the status of a job that waits in the queue, with the estimated duration of those ahead."""
    others = "1 request is" if jobs_ahead == 1 else f"{jobs_ahead} requests are"
    about = f", about {format_duration(seconds)}" if seconds >= 1 else ""
    return _status("Waiting", f"{others} ahead of yours{about}.") if jobs_ahead else _status("Starting", "")


def restarting_html() -> str:
    """Format the status of a job that waits for the drawing process."""
    return _status("Restarting", "the model is loaded again, then your request is drawn.")


def preview_html(preview: Preview, stopping: bool) -> str:
    """Format the progress bar, the intermediate images and their level maps."""
    steps = f"step {preview.done}" + (f" of {preview.total}" if preview.total else "")
    return _status("Stopping" if stopping else "Drawing", steps, _bar(preview)) + _pairs(preview)


def stopped_html(preview: Preview | None) -> str:
    """Format the status and the last preview of a stopped job."""
    if preview is None:
        return _status("Stopped", "before the first step.")
    return _status("Stopped", f"at step {preview.done}.", _bar(preview)) + _pairs(preview)


def error_html(error: str) -> str:
    """Format an error message for the visitor."""
    return f'<div class="status failed" role="alert"><b>That did not work:</b> <span>{escape(error)}</span></div>'


def result_html(result: Result, job: Job) -> str:
    """Format the input photo, if any, and the finished images with download links, all at one scale."""
    images: list[tuple[str, Sequence[int], str, str]] = []
    if job.request.photo is not None:
        images.append((data_url(job.request.photo), job.request.photo.shape[1:], "your image", "your image"))
    for seed, file in enumerate(result.images, job.request.seed):
        with Image.open(file) as image:
            size = (image.height, image.width)
        link = _link(file, "image/png", "Save PNG", job)
        images.append((_url("image/png", file.read_bytes()), size, f"seed {seed} {link}", f"image of seed {seed}"))
    side = {1: ONE, 2: TWO}.get(len(images), SEVERAL)
    scale = _scale(max(max(size) for _, size, _, _ in images), side)
    figures = [_figure(url, size, scale, caption, alt) for url, size, caption, alt in images]
    links, gif = _link(result.record, "text/yaml", "Save YAML", job), ""
    if result.gif is not None and result.gif.stat().st_size > LARGEST_GIF:
        gif = notes_html([f"{result.gif.name} is too large to be shown here: it stays in folder {_number(result.gif)}"])
    elif result.gif is not None:
        links = _link(result.gif, "image/gif", "Save GIF", job) + links
        movie = f'<img alt="animation" src="{_url("image/gif", result.gif.read_bytes())}">'
        gif = f"<details open><summary>How it was drawn</summary>{movie}</details>"
    done = _status("Done", f"in {result.seconds:.1f} seconds.", notes_html(result.notes))
    return f'{done}{_row(figures)}<div class="links">{links}</div>{gif}'


def notes_html(notes: Sequence[str]) -> str:
    """Format notes on how a photo was changed, such as resizing, one per line."""
    return "".join(f'<div class="note">{escape(note)}</div>' for note in notes)


def _pairs(preview: Preview) -> str:
    """Format a row of images, each next to its level map."""
    side, pairs = TWO if len(preview.images) == 1 else PAIR, []
    for i, image in enumerate(preview.images):
        size = image.shape[1:]
        scale = _scale(max(size), side)
        figures = [_figure(data_url(image), size, scale, "image", "unfinished image")]
        if preview.levels is not None:
            map_url = data_url(level_map_pixels(preview.levels[i]))
            figures.append(_figure(map_url, size, scale, "noise: white = all", "noise levels", is_map=True))
        pairs.append(f'<div class="pair">{"".join(figures)}</div>')
    return _row(pairs)


def _bar(preview: Preview) -> str:
    """Format the progress bar."""
    percent = 100 * preview.done / preview.total if preview.total else 0
    return f'<div class="bar"><div style="width:{percent:.1f}%"></div></div>'


def _scale(longest: int, side: int) -> float:
    """Return CSS pixels per image pixel, an integer for small images, so that `longest` pixels take about `side`."""
    if longest > side:
        return min(1.0, LARGEST / longest)
    return side // longest if SQUARE * longest <= side else side / longest


def _figure(url: str, size: Sequence[int], scale: float, caption: str, alt: str, *, is_map: bool = False) -> str:
    """Return a figure with an image, or with a level map enlarged to the (height, width) `size` of its image."""
    height, width = size
    shape = f"width:{max(1, round(width * scale))}px;aspect-ratio:{width}/{height}"
    kind = "large" if scale < SQUARE and not is_map else "small"
    image = f'<img class="{kind}" alt="{escape(alt)}" src="{url}" style="{shape}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _link(file: Path, kind: str, caption: str, job: Job) -> str:
    """Return a download link; the file name starts with the number of the job's folder and the kind of request."""
    url = _url(kind, file.read_bytes())
    name = f"{_number(file)}_{job.request.kind}_{file.name}"
    return f'<a class="save" download="{escape(name)}" href="{url}">{caption}</a>'


def _number(file: Path) -> str:
    """Return the number of the job's folder."""
    return file.parent.parent.name


def _row(figures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _status(state: str, text: str, more: str = "") -> str:
    return f'<div class="status" role="status"><b>{state}</b> <span>{escape(text)}</span>{more}</div>'


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
