"""`python -m asyncdiff inpaint RUN --image photo.jpg --mask square`: photos with a part drawn anew."""

from functools import partial

from asyncdiff.commands.draw import draw
from asyncdiff.predictions import Inpaint

DESCRIPTION = """Draw a part of photos anew; what is known of them stays bit for bit."""

main = partial(draw, "inpaint", Inpaint, DESCRIPTION, "0-3")
