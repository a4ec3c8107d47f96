"""Load images to paint on: examples, uploaded photos and earlier results."""

from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from asyncdiff.model import Model
from asyncdiff.regular_files import open_regular
from asyncdiff.tasks import Generate
from asyncdiff.tasks.arguments import format_size, photo_files
from asyncdiff.tasks.photos import (
    collect_warnings,
    fit_photo,
    plan_fit,
    read_photo,
    to_bytes,
    warn,
)
from asyncdiff.web.limits import Limits
from asyncdiff.web.model_info import ModelInfo

Photo = UInt8[Tensor, "c h w"]

EXAMPLES = 6  # sampled from the model; a folder may provide four times as many
MAX_ASPECT = 16  # longer side over shorter side


def load_examples(where: str, model: Model, info: ModelInfo, limits: Limits) -> list[Photo]:
    """Load the example images.

    Args:
        where: file, folder or glob pattern; "drawn" samples the examples from the model, "none" returns an empty list.
        model: model to sample from.
        info: facts about the model.
        limits: limits on the size of photos.

    Returns:
        8-bit images of the model's size.
    """
    if where == "none":
        return []
    if where == "drawn":
        return list(to_bytes(Generate().sample(model, seeds=range(EXAMPLES))))
    with collect_warnings():  # no notes: the visitor sees how examples are cropped
        return [load_photo(file, info, limits) for file in photo_files("examples", where)[: 4 * EXAMPLES]]


def load_photo(file: Path, info: ModelInfo, limits: Limits) -> Photo:
    """Read a photo, resized and cropped to the model's size; raise ValueError if it is too large or unreadable."""
    unreadable = f"{file.name} cannot be read as an image: save it as PNG or JPEG"
    try:
        with open_regular(file) as stream, Image.open(stream) as image:  # reads only the header
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(unreadable) from error
    if width * height > limits.photo_pixels:
        size = format_size((height, width))
        raise ValueError(f"images must have at most {limits.photo_pixels} pixels, got {size}: reduce the size first")
    if max(width, height) > MAX_ASPECT * min(width, height):  # resizing before the crop would make it huge
        size = format_size((height, width))
        raise ValueError(f"images must be at most {MAX_ASPECT} times as long as wide, got {size}: crop it first")
    try:
        pixels = read_photo(file, info.channels)
    except ValueError as error:  # replaces a message that reveals the path on the server
        raise ValueError(unreadable) from error
    how = plan_fit((pixels.shape[1], pixels.shape[2]), info.size, "crop", info.patch)
    if how.size != how.resized:
        warn(f"{file.name}: {how.describe()}")
    return fit_photo(pixels, how)


def load_result(file: Path, info: ModelInfo) -> tuple[Photo, list[str]]:
    """Read a generated image at its own size, cropped to complete patches; return it with notes for the visitor."""
    pixels = read_photo(file, info.channels)
    size = (pixels.shape[1], pixels.shape[2])
    how = plan_fit(size, size, "keep", info.patch)
    notes = [how.describe()] if how.size != size else []
    if how.size != info.size:
        notes.append(
            f"{format_size(how.size)} pixels, but the model was trained on {format_size(info.size)}: "
            "Extend and Texture draw such sizes window by window"
        )
    return fit_photo(pixels, how), notes
