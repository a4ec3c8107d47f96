"""Command-line interface: training, all other commands, and one-line error messages."""
