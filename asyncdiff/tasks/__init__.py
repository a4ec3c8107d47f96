"""Tasks for a trained model, such as inpainting, with plain arguments for `model.task`, commands and Python alike.

    Inpaint("photo.jpg", "square").sample(model, seeds=[0, 1, 2])  # (3, c, h, w)

Files are read only when the requests are made, so that tasks can be configured on machines without the photos.
"""

from asyncdiff.tasks.image_tasks import Autoregress, Edit, Generate, Inpaint, Task
from asyncdiff.tasks.requests import Request, State
from asyncdiff.tasks.tiled_tasks import Outpaint, Texture

__all__ = ["Autoregress", "Edit", "Generate", "Inpaint", "Outpaint", "Request", "State", "Task", "Texture"]
