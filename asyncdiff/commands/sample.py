"""`python -m asyncdiff sample RUN --labels 0,1,2 --seeds 0,1,2`: whole images."""

from functools import partial

from asyncdiff.commands.draw import draw
from asyncdiff.predictions import Generate

DESCRIPTION = """Draw whole images with a trained model, one per seed."""

main = partial(draw, "sample", Generate, DESCRIPTION, "0-15")
