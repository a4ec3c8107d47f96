"""What `python -m asyncdiff` runs, one file a command: `main(args)` reads its words and does the work."""
