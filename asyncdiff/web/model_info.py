"""What the page says and asks depending on the model."""

from typing import Any, NamedTuple

from asyncdiff.tasks.photos import by
from asyncdiff.tasks.pixel_space import patch_of, window_of


class About(NamedTuple):
    """What the page says and asks depending on the model.

    Attributes:
        name: of the run.
        channels: 1 or 3.
        size: (height, width) of its pictures in pixels.
        patch: (height, width) of a patch in pixels.
        classes: that it knows, 0 for none.
        steps: of its sampler, None if that has no such number.
        movie: whether a GIF is cheap enough to be made unasked.
    """

    name: str
    channels: int
    size: tuple[int, int]
    patch: tuple[int, int]
    classes: int
    steps: int | None
    movie: bool

    def usual(self, kind: str) -> str:
        """HEIGHTxWIDTH of what is drawn where no size is told: textures show what they are at twice the model's."""
        factor = 2 if kind == "texture" else 1
        return by([factor * side for side in self.size])

    def told(self) -> str:
        """In words."""
        (h, w), (ph, pw) = self.size, self.patch
        colour = "grey" if self.channels == 1 else "colour"
        classes = f"; it knows {self.classes} classes" if self.classes else ""
        patches = f"{h // ph}x{w // pw} patches of {ph}x{pw}"
        return (
            f"**{self.name}** draws {colour} pictures of {h}x{w} pixels, {patches}{classes}. "
            "Every patch has its own noise level: what you leave alone is clean from the start, the rest is drawn to "
            "fit."
        )


def about_of(model: Any, name: str) -> About:
    """What the page says of a model."""
    channels, height, width = window_of(model)
    steps = getattr(model.sampler, "steps", None)
    return About(name, channels, (height, width), patch_of(model), model.classes, steps, movie=model.codec is None)
