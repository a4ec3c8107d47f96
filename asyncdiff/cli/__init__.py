"""Everything the terminal starts: training, the commands, and errors in one line."""
