"""What several commands share: options, experiment files, image sources, features, records and results."""
