"""`python -m asyncdiff outpaint RUN --image photo.jpg --right 32`: photos continued beyond their edges."""

from functools import partial

from asyncdiff.commands.draw import draw
from asyncdiff.predictions import Outpaint

DESCRIPTION = """Continue photos beyond their edges, window by window where the result exceeds the model's size."""

main = partial(draw, "outpaint", Outpaint, DESCRIPTION, "0-3")
