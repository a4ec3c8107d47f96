"""A page in the browser that draws with one model: what is wished, who waits, and what is shown.

A wish becomes the words of a command of `python -m asyncdiff`, and these words are what is run: the page can do nothing
that the command line cannot, and shows the line that does the same.
"""
