"""Limits on draw requests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on a single request and on the queue.

    Attributes:
        photo_pixels: maximum number of pixels of an uploaded photo.
        pixels: maximum number of pixels of a generated image.
        images: maximum number of images per request.
        steps: maximum number of sampling steps, in total or per patch.
        queued: maximum number of requests waiting in the queue.
        megabytes: maximum size of an uploaded file.
    """

    photo_pixels: int = 40_000_000
    pixels: int = 1_048_576
    images: int = 6
    steps: int = 1000
    queued: int = 8
    megabytes: int = 20
