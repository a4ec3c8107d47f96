"""Web page for drawing with one model: draw requests, a job queue, previews and results.

A draw request becomes the arguments of a `python -m asyncdiff` command, and exactly these arguments are run: the page
can do nothing that the command line cannot, and it shows the equivalent command.
"""
