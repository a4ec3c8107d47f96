"""Tasks for a trained model, such as inpainting, set by plain arguments for `model.task`, commands and Python alike.

    Inpaint("photo.jpg", "square").sample(model, seeds=[0, 1, 2])  # (3, c, h, w)

No file is read before the requests are made, so that a task can be described on machines without its photos.
"""

from asyncdiff.tasks.image_tasks import Autoregress, Edit, Generate, Inpaint, Task
from asyncdiff.tasks.requests import Request, State
from asyncdiff.tasks.tiled_tasks import Outpaint, Texture

__all__ = ["Autoregress", "Edit", "Generate", "Inpaint", "Outpaint", "Request", "State", "Task", "Texture"]
