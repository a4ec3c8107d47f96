"""Web page for drawing with one model: draw requests, a job queue, previews and results.

A draw request is translated to the arguments of a `python -m asyncdiff` command, which is then run with exactly these
arguments: the page can do nothing that the command line cannot, and it shows the equivalent command.
"""
