"""Code shared by several commands: options, experiment files, image sources, features, records and results."""
