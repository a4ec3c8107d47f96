"""What a trained model is asked to draw, in plain arguments: for `model.task`, the commands and Python alike.

    Inpaint("photo.jpg", "square").draw(model, seeds=[0, 1, 2])  # (3, c, h, w)

Nothing is read before the requests are made: a task can be described where its photos are not.
"""

from asyncdiff.tasks.requests import Request, State
from asyncdiff.tasks.tasks import Autoregress, Edit, Generate, Inpaint, Task
from asyncdiff.tasks.tiled_tasks import Outpaint, Texture

__all__ = ["Autoregress", "Edit", "Generate", "Inpaint", "Outpaint", "Request", "State", "Task", "Texture"]
