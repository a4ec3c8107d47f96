"""Photos that come to the page, and pictures of its own that come back to be painted on."""

from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from asyncdiff.tasks import Generate
from asyncdiff.tasks.photos import by, collected, fitted, fitting, photo_files, read_photo, to_bytes, warn
from asyncdiff.web.draw_request import Limits
from asyncdiff.web.model_info import About

Photo = UInt8[Tensor, "c h w"]

EXAMPLES = 6
LONGEST = 16  # times the shorter side


def examples_of(where: str, model: Any, about: About, limits: Limits) -> list[Photo]:
    """Photos to pick from: those of a file, a folder or a pattern, those that the model draws, or none."""
    if where == "none":
        return []
    if where == "drawn":
        return list(to_bytes(Generate().draw(model, seeds=range(EXAMPLES))))
    with collected():  # they are seen as they are
        return [photo_of(file, about, limits) for file in photo_files("examples", where)[: 4 * EXAMPLES]]


def photo_of(file: Path, about: About, limits: Limits) -> Photo:
    """A file as the model takes it; ValueError if it is too large, too long or no picture."""
    unread = f"pictures must be files that can be read, got {file.name}: save it as PNG or JPEG"
    try:
        with Image.open(file) as image:  # its head alone
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(unread) from error
    if width * height > limits.photo_pixels:
        raise ValueError(
            f"pictures must have at most {limits.photo_pixels} pixels, got {by((height, width))}: reduce it first"
        )
    if max(width, height) > LONGEST * min(width, height):  # it would be enlarged before it is cut
        raise ValueError(f"pictures must be {LONGEST} times as long as wide at most, got {by((height, width))}: cut it")
    try:
        pixels = read_photo(file, about.channels)
    except ValueError as error:  # its path is the server's affair
        raise ValueError(unread) from error
    how = fitting((pixels.shape[1], pixels.shape[2]), about.size, "crop", about.patch)
    if how.size != how.resized:
        warn(f"{file.name}: {how.told()}")
    return fitted(pixels, how)


def result_of(file: Path, about: About) -> tuple[Photo, list[str]]:
    """A picture that was drawn, at its own size as far as whole patches go, and what there is to say about that."""
    pixels = read_photo(file, about.channels)
    size = (pixels.shape[1], pixels.shape[2])
    how = fitting(size, size, "keep", about.patch)
    notes = [how.told()] if how.size != size else []
    if how.size != about.size:
        learnt = by(about.size)
        notes.append(f"{by(how.size)} pixels, where the model learnt {learnt}: Extend and Texture draw such in windows")
    return fitted(pixels, how), notes
