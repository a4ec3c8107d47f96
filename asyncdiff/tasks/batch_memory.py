"""Compare the memory that batches of images need with what there is, before they are drawn."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from asyncdiff.memory import format_bytes
from asyncdiff.model import Model
from asyncdiff.sampling.engine import available_on, device_of
from asyncdiff.tasks.arguments import format_size
from asyncdiff.tasks.image_tasks import Task
from asyncdiff.tasks.pixel_space import PixelSpace
from asyncdiff.tasks.requests import Request
from asyncdiff.tasks.tiled_tasks import TiledTask

# Pixels, relative to an image of the model's size, below which a batch is usual; the network is not measured for it.
USUAL = 256


def check_batches(task: Task, model: Model, requests: Sequence[Request], batch_size: int) -> None:
    """Raise ValueError if the images that a task draws together do not fit into memory.

    Args:
        task: task that draws; images in windows have been checked, since their memory grows by the image only.
        model: model that draws.
        requests: requests of the task.
        batch_size: maximum number of images per batch.
    """
    space = PixelSpace(model)
    largest: dict[tuple[int, int], int] = {}
    for batch in task.batches(model, requests, batch_size):
        if not isinstance(task, TiledTask) or not task.needs_tiling(space, batch[0].size):
            largest[batch[0].size] = max(len(batch), largest.get(batch[0].size, 0))
    for size, count in largest.items():
        if count * math.prod(size) > USUAL * math.prod(space.window[1:]):
            _check_batch(space, size, count)


def _check_batch(space: PixelSpace, size: tuple[int, int], count: int) -> None:
    from asyncdiff.tasks.measured_cost import measure_network  # imported late: few batches are so large

    available = available_on(device_of(space.model.denoiser))
    network = measure_network(space.model, largest=math.prod(space.encoded_size(size)), repeated=0)

    def needed(images: int, height: int, width: int) -> int:
        pixels = images * height * width * space.bytes_per_pixel
        return pixels + math.ceil(network.memory(math.prod(space.encoded_size((height, width))), images))

    if needed(count, *size) <= available:
        return
    facts = f"which needs {format_bytes(needed(count, *size))} of the {format_bytes(available)} available"
    if fitting := bisect_right(range(1, count + 1), available, key=lambda images: needed(images, *size)):
        raise ValueError(
            f"batch_size must fit into memory, got {count} images of {format_size(size)} pixels, {facts}: use at most "
            f"{fitting}"
        )
    high, wide = space.patch
    sides = range(1, max(size[0] // high, size[1] // wide) + 1)
    side = max(1, bisect_right(sides, available, key=lambda n: needed(1, n * high, n * wide)))
    fitting_size = format_size((side * high, side * wide))
    raise ValueError(
        f"size must fit into memory, got {format_size(size)}, {facts}: at most {fitting_size} fit into a single image, "
        "texture draws larger ones in windows"
    )
