"""What distributions over level maps look like. The files that draw load matplotlib: import them where you draw."""
