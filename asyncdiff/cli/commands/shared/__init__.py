"""What several commands share: parser, options, and the run that a command line names. Imports no PyTorch."""
