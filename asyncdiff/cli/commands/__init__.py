"""Commands of `python -m asyncdiff`, one module each, run by its function `main(argv)`."""
