"""Commands of `python -m asyncdiff`, one module each, with a function `main(argv)` that parses and runs."""
