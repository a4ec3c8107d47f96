"""Tasks for a trained model, such as inpainting: plain arguments for `model.predict.task`, commands and Python alike.

    Inpaint("photo.jpg", "square").sample(model, seeds=[0, 1, 2])  # (3, c, h, w)

Files are read only when the requests are made, so that tasks can be configured on machines without the photos; nor is
torch imported before.
"""

from typing import TYPE_CHECKING, Any

from asyncdiff.tasks.image_tasks import Autoregress, Edit, Generate, Inpaint, Task
from asyncdiff.tasks.requests import Canvas, Photo, Request, State
from asyncdiff.tasks.tiled_tasks import Outpaint, Texture

if TYPE_CHECKING:
    from asyncdiff.tasks.pixel_space import PixelSpace

__all__ = [
    "Autoregress",
    "Canvas",
    "Edit",
    "Generate",
    "Inpaint",
    "Outpaint",
    "Photo",
    "PixelSpace",
    "Request",
    "State",
    "Task",
    "Texture",
]


def __getattr__(name: str) -> Any:
    if name == "PixelSpace":
        from asyncdiff.tasks.pixel_space import PixelSpace

        return PixelSpace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
