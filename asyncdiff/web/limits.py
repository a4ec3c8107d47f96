"""Limits on draw requests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on a single request, on the queue and on what is stored.

    Attributes:
        photo_pixels: maximum number of pixels of an uploaded photo.
        pixels: maximum number of pixels of a generated image.
        images: maximum number of images per request.
        steps: maximum number of sampling steps, in total or per patch.
        seconds: maximum estimated duration of a request; a request that takes twice as long is ended.
        queued: maximum number of requests waiting in the queue.
        per_visitor: maximum number of requests of one visitor, running or waiting.
        megabytes: maximum size of an uploaded file.
        uploads: maximum total size of uploaded files in megabytes.
        sessions: maximum number of open pages that are remembered.
        free_megabytes: free space on the disk below which nothing is drawn.
    """

    photo_pixels: int = 40_000_000
    pixels: int = 1_048_576
    images: int = 6
    steps: int = 1000
    seconds: float = 300.0
    queued: int = 20
    per_visitor: int = 4
    megabytes: int = 20
    uploads: int = 400
    sessions: int = 200
    free_megabytes: int = 1000
