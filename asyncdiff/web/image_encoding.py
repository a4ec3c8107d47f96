"""What is shown beside the painting: pictures on their way and finished ones, as HTML that holds all its data."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from asyncdiff.web.job_queue import Job, Preview, Result

# CSS pixels of a picture's longer side, about: one, two, three or four stand in a row. What is larger has its own size,
# as far as there is room.
SQUARES = 4  # CSS pixels from which on a pixel is seen as a square
ALONE, SIDE, SEVERAL, PAIRED, ROOM = 448, 224, 146, 108, 512

EMPTY = """<div class="nothing">What is drawn appears here: the picture, and beside it how noisy each patch still is.
</div>"""


def data_url(pixels: UInt8[Tensor, "c h w"]) -> str:
    """A PNG inside an address."""
    array = pixels.cpu().permute(1, 2, 0).numpy()
    data = BytesIO()
    Image.fromarray(array[..., 0] if len(pixels) == 1 else np.ascontiguousarray(array)).save(data, "PNG")
    return _url("image/png", data.getvalue())


def grey(levels: Float[Tensor, "gh gw"]) -> UInt8[Tensor, "1 gh gw"]:
    """A level map as pixels: black = clean, white = noise."""
    return (levels.clamp(0, 1) * 255).round().byte()[None]


def waiting(before: int) -> str:
    """The page while others are drawn."""
    others = "1 picture is" if before == 1 else f"{before} pictures are"
    return _status("Waiting", f"{others} drawn first.") if before else _status("Starting", "")


def on_its_way(look: Preview, stopping: bool) -> str:
    """The pictures and their level maps, with a bar."""
    counted = f"step {look.done}" + (f" of {look.total}" if look.total else "")
    return _status("Stopping" if stopping else "Drawing", counted, _bar(look)) + _pairs(look)


def stopped(look: Preview | None) -> str:
    """What there was when it was stopped."""
    if look is None:
        return _status("Stopped", "before it began.")
    return _status("Stopped", f"at step {look.done}.", _bar(look)) + _pairs(look)


def failed(error: str) -> str:
    """One line."""
    return f'<div class="status failed" role="alert"><b>That does not work:</b> <span>{escape(error)}</span></div>'


def finished(result: Result, job: Job) -> str:
    """The pictures, with links that save them, and what they were made from, all at one scale."""
    images: list[tuple[str, Sequence[int], str, str]] = []
    if job.wish.photo is not None:
        images.append((data_url(job.wish.photo), job.wish.photo.shape[1:], "what was given", "what was given"))
    for seed, file in enumerate(result.pictures, job.wish.seed):
        with Image.open(file) as image:
            size = (image.height, image.width)
        link = _link(file, "image/png", "Save PNG", job)
        images.append((_url("image/png", file.read_bytes()), size, f"seed {seed} {link}", f"picture of seed {seed}"))
    side = {1: ALONE, 2: SIDE}.get(len(images), SEVERAL)
    scale = _scale(max(max(size) for _, size, _, _ in images), side)
    figures = [_figure(url, size, scale, caption, alt) for url, size, caption, alt in images]
    links, movie = _link(result.recorded, "text/yaml", "Save YAML", job), ""
    if result.movie is not None:
        links = _link(result.movie, "image/gif", "Save GIF", job) + links
        movie = _movie(result.movie)
    done = _status("Done", f"in {result.seconds:.1f} seconds.", noted(result.notes))
    return f'{done}{_row(figures)}<div class="links">{links}</div>{movie}'


def noted(notes: Sequence[str]) -> str:
    """What was done to a photo that its owner may not expect."""
    return "".join(f'<div class="note">{escape(_without_folders(note))}</div>' for note in notes)


def _pairs(look: Preview) -> str:
    """Every picture with its level map."""
    side, pairs = SIDE if len(look.images) == 1 else PAIRED, []
    for i, image in enumerate(look.images):
        size = image.shape[1:]
        scale = _scale(max(size), side)
        figures = [_figure(data_url(image), size, scale, "picture", "picture on its way")]
        if look.levels is not None:
            map_url = data_url(grey(look.levels[i]))
            figures.append(_figure(map_url, size, scale, "noise: white = all", "noise levels", map_of=True))
        pairs.append(f'<div class="pair">{"".join(figures)}</div>')
    return _row(pairs)


def _bar(look: Preview) -> str:
    """How far it is."""
    share = 100 * look.done / look.total if look.total else 0
    return f'<div class="bar"><div style="width:{share:.1f}%"></div></div>'


def _scale(longest: int, side: int) -> float:
    """CSS pixels per pixel: whole numbers for small pictures, so that pixels are squares; 1 for large ones."""
    if longest > side:
        return min(1.0, ROOM / longest)
    return side // longest if SQUARES * longest <= side else side / longest


def _figure(url: str, size: Sequence[int], scale: float, caption: str, alt: str, *, map_of: bool = False) -> str:
    """A picture, or a map of one of that size. The caption is HTML."""
    height, width = size
    shape = f"width:{max(1, round(width * scale))}px;aspect-ratio:{width}/{height}"
    kind = "large" if scale < SQUARES and not map_of else "small"
    image = f'<img class="{kind}" alt="{escape(alt)}" src="{url}" style="{shape}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _link(file: Path, kind: str, caption: str, job: Job) -> str:
    """A link that saves a file under a name that says which job it is of: its folder's number, and the kind."""
    url = _url(kind, file.read_bytes())
    name = f"{file.parent.parent.name}_{job.wish.kind}_{file.name}"
    return f'<a class="save" download="{escape(name)}" href="{url}">{caption}</a>'


def _movie(file: Path) -> str:
    url = _url("image/gif", file.read_bytes())
    return f'<details open><summary>How it came about</summary><img alt="movie" src="{url}"></details>'


def _row(figures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _status(state: str, text: str, more: str = "") -> str:
    return f'<div class="status" role="status"><b>{state}</b> <span>{escape(text)}</span>{more}</div>'


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _without_folders(note: str) -> str:
    """A note about a file, whose folder is the server's affair."""
    return " ".join(
        Path(word.rstrip(":")).name + ":" if word.endswith(":") and "/" in word else word for word in note.split(" ")
    )
