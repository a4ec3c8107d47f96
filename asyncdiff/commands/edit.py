"""`python -m asyncdiff edit RUN --image photo.jpg --levels map.png`: photos changed as much as a map says."""

from functools import partial

from asyncdiff.commands.draw import draw
from asyncdiff.predictions import Edit

DESCRIPTION = """Change photos: little where a map is dark grey, more where it is bright; black stays bit for bit."""

main = partial(draw, "edit", Edit, DESCRIPTION, "0-3")
