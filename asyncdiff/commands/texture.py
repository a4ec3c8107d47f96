"""`python -m asyncdiff texture RUN --exemplar wall.png --size 256x128 --tileable true`: textures of any size."""

from functools import partial

from asyncdiff.commands.draw import draw
from asyncdiff.predictions import Texture

DESCRIPTION = """Draw textures of any size, window by window, from an exemplar or from nothing."""

main = partial(draw, "texture", Texture, DESCRIPTION, "0")
