"""Facts about the model that determine the page's texts and controls."""

from inspect import signature
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from asyncdiff.foreign_text import visible
from asyncdiff.markdown import bold
from asyncdiff.model import Model
from asyncdiff.tasks.arguments import format_size
from asyncdiff.tasks.drawing_cost import DrawingCost
from asyncdiff.tasks.pixel_space import PixelSpace


class ModelInfo(NamedTuple):
    """Facts about the model that determine the page's texts and controls.

    Attributes:
        name: name of the run, shown on the page.
        channels: image channels, 1 or 3.
        size: (height, width) of the training images in pixels.
        patch: (height, width) of a patch in pixels.
        classes: number of class labels, 0 for an unconditional model.
        steps: the sampler's number of steps, None if it has no fixed number.
        movie: whether a GIF is cheap enough to be recorded by default.
    """

    name: str
    channels: int
    size: tuple[int, int]
    patch: tuple[int, int]
    classes: int
    steps: int | None
    movie: bool

    def default_size(self, kind: str) -> str:
        """Return the default HEIGHTxWIDTH for a kind of request: the model's size, twice as large for textures."""
        factor = 2 if kind == "texture" else 1
        return format_size([factor * side for side in self.size])

    def describe(self) -> str:
        """Return an introduction to the model, as Markdown."""
        (h, w), (ph, pw) = self.size, self.patch
        color = "gray" if self.channels == 1 else "color"
        classes = f"; it was trained on {self.classes} classes" if self.classes else ""
        patches = f"{h // ph}x{w // pw} patches of {ph}x{pw}"
        return (
            f"{bold(self.name)} draws {color} images of {h}x{w} pixels, {patches}{classes}. "
            "Every patch has its own noise level: the parts that you keep are clean from the start, and the rest is "
            "drawn to fit them."
        )


class PageFacts(NamedTuple):
    """What the page shows of the model, which another process has loaded.

    Attributes:
        info: facts about the model.
        examples: images to paint on.
        cost: cost of drawing.
    """

    info: ModelInfo
    examples: list[UInt8[Tensor, "c h w"]]
    cost: DrawingCost


def model_info(model: Model, name: str) -> ModelInfo:
    """Collect the facts about a model."""
    space = PixelSpace(model)
    channels, height, width = space.window
    # The number that an option can change: that of an autoregressive sampler follows from its order.
    steps = getattr(model.sampler, "steps", None) if "steps" in signature(type(model.sampler)).parameters else None
    return ModelInfo(
        visible(name, 100), channels, (height, width), space.patch, model.classes, steps, movie=model.codec is None
    )
