"""`python -m asyncdiff autoregress RUN --order spiral --overlap 0.5`: images drawn patch after patch."""

from functools import partial

from asyncdiff.commands.draw import draw
from asyncdiff.predictions import Autoregress

DESCRIPTION = """Draw images, or missing parts of photos, patch after patch in any order."""

main = partial(draw, "autoregress", Autoregress, DESCRIPTION, "0-3")
