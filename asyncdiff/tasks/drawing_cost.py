"""What drawing with one model costs: seconds and bytes of images of any size, from measurements at a few cheap sizes.

`asyncdiff.tasks.measured_cost` measures. Estimates never fall when size, steps or number of images grow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PREVIEWS = 1.25  # time of a job relative to one without previews
COPIES = 48  # 32-bit numbers per pixel that samplers and files hold
GIF_IMAGES, GIF_FRAMES, GIF_SIDE = 6, 62, 128  # images and frames of a GIF, and the least side of its images
WINDOWS = 64  # windows that are drawn together


class Measurement(NamedTuple):
    """Cost of one evaluation of a network for a single image.

    Attributes:
        area: number of pixels or latents of the image.
        seconds: duration.
        work: floating-point operations; 0 if they cannot be counted.
        memory: bytes of the tensors that exist at the same time.
    """

    area: int
    seconds: float
    work: float
    memory: float


class Estimate(NamedTuple):
    """Estimated cost of a request.

    Attributes:
        seconds: duration.
        memory: bytes on the model's device.
        host_memory: bytes of the machine's memory.
    """

    seconds: float
    memory: float
    host_memory: float


@dataclass(frozen=True)
class EvaluationCost:
    """Cost of one evaluation for images of any size.

    Attributes:
        measurements: measured costs by increasing area, at least one.
    """

    measurements: Sequence[Measurement]

    def work(self, area: float) -> float:
        """Return the operations of one evaluation for one image, relative to other areas."""
        if self.measurements[-1].work <= 0:  # of unknown structure: as if every patch attended to all others
            return float(area) ** 2
        return _extended([(point.area, point.work) for point in self.measurements], area)

    def seconds(self, area: float, images: float = 1) -> float:
        """Return the duration: between measurements interpolated, beyond them with the speed of the last one."""
        work, known = images * self.work(area), [self.work(point.area) for point in self.measurements]
        # Other programs only slow measurements down: a smaller image takes at most as long as a larger one.
        seconds = np.minimum.accumulate([point.seconds for point in reversed(self.measurements)])[::-1]
        return float(np.interp(work, known, seconds)) * max(1.0, work / known[-1])

    def memory(self, area: float, images: float = 1) -> float:
        """Return the bytes of one evaluation, which grow with the power of the last measurements, 1 to 2."""
        last, before = self.measurements[-1], self.measurements[-2:][0]
        growth = math.log(last.memory / before.memory, last.area / before.area) if last != before else 2.0
        return images * last.memory * (area / last.area) ** min(max(growth, 1.0), 2.0)


@dataclass(frozen=True)
class DrawingCost:
    """Cost of drawing with one model on one device.

    Attributes:
        network: cost of one evaluation of the network.
        codec: cost of decoding; None without a codec.
        window: (height, width) in pixels of the images that the model was trained on.
        patch: (height, width) in pixels of a patch of the level map.
        factor: number of pixels per latent along each side; 1 without a codec.
        steps: number of sampling steps of an image of the window's size.
        grows: whether the sampler takes more evaluations for larger images; the worst case is assumed, as many more as
            there are patches more.
        evaluations: evaluations of the network per image and step.
        ordered_evaluations: the same if patches are drawn one after the other.
        class_guidance: factor by which classifier-free guidance multiplies them.
        input_guidance: factor by which guidance by the known pixels multiplies them.
        pixel: seconds to encode one pixel.
        free: bytes that are free on the model's device; None if it uses the machine's memory.
    """

    network: EvaluationCost
    codec: EvaluationCost | None
    window: tuple[int, int]
    patch: tuple[int, int]
    factor: int
    steps: int
    grows: bool = False
    evaluations: float = 1.0
    ordered_evaluations: float = 1.0
    class_guidance: float = 1.0
    input_guidance: float = 1.0
    pixel: float = 0.0
    free: int | None = None

    def together(
        self,
        size: tuple[int, int],
        *,
        images: int = 1,
        steps: int | None = None,
        ordered: bool = False,
        guidance: float = 1.0,
        gif: bool = False,
    ) -> Estimate:
        """Return the cost of images that are drawn on one trajectory each.

        Args:
            size: (height, width) in pixels.
            images: number of images.
            steps: number of sampling steps; None for the sampler's.
            ordered: whether patches are drawn one after the other.
            guidance: factor by which guidance multiplies the evaluations.
            gif: whether a GIF is written.
        """
        area, taken = self._area(size), float(self.steps if steps is None else steps)
        if self.grows and not ordered:
            taken *= max(1.0, area / self._area(self.window))
        evaluations = self.ordered_evaluations if ordered else self.evaluations
        seconds = guidance * evaluations * taken * self.network.seconds(area, images)
        return self._with_files(size, images, taken, gif, seconds, self.network.memory(area, images), together=images)

    def in_windows(
        self,
        size: tuple[int, int],
        overlap: float,
        *,
        tileable: bool = False,
        images: int = 1,
        steps: int | None = None,
        guidance: float = 1.0,
        gif: bool = False,
    ) -> Estimate:
        """Return the cost of images that are drawn one after the other, each in overlapping windows.

        Args:
            size: (height, width) in pixels.
            overlap: share of a window's side that is known when it is drawn.
            tileable: whether the image wraps around.
            images: number of images.
            steps: number of sampling steps of a window; None for the sampler's.
            guidance: factor by which guidance multiplies the evaluations.
            gif: whether a GIF is written.
        """
        sides = zip(size, self.window, self.patch, strict=True)
        rows, columns = (_windows(-(-side // p), window // p, overlap) + tileable for side, window, p in sides)
        window = self.together(self.window, images=rows * columns, steps=steps, guidance=guidance)
        memory = self.network.memory(self._area(self.window), min(rows * columns, WINDOWS))
        frames = float(rows + columns + rows * columns / WINDOWS)
        return self._with_files(size, images, frames, gif, images * window.seconds, memory, together=1)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (rows, columns) of the level map of an image of (height, width) in pixels, rounded up."""
        return -(-size[0] // self.patch[0]), -(-size[1] // self.patch[1])

    def _with_files(
        self,
        size: tuple[int, int],
        images: int,
        frames: float,
        gif: bool,
        seconds: float,
        memory: float,
        *,
        together: int,
    ) -> Estimate:
        """Add decoding, previews and files to the cost of the network; `together` images exist at once."""
        pixels, area = size[0] * size[1], self._area(size)
        seconds *= PREVIEWS
        if self.codec is not None:
            decoded = frames * together if gif else 0
            seconds += self.codec.seconds(area, images + decoded)
            memory = max(memory, self.codec.memory(area, together))
        host = 4.0 * COPIES * together * pixels
        seconds += self.pixel * images * pixels
        if gif:
            cells = 2.0 * min(together, GIF_IMAGES) * max(pixels, GIF_SIDE**2)
            seconds += self.pixel * cells * (frames + min(frames, GIF_FRAMES))
            host += 4.0 * GIF_FRAMES * cells
        return Estimate(seconds, memory, host)

    def _area(self, size: tuple[int, int]) -> int:
        return -(-size[0] // self.factor) * -(-size[1] // self.factor)


def steps_of_order(order: str, overlap: float, steps_per_patch: int, grid: tuple[int, int]) -> int:
    """Return the number of sampling steps if the patches of a grid are drawn one after the other."""
    from asyncdiff.noise.orders import order_by_name
    from asyncdiff.sampling.samplers import Autoregressive

    return Autoregressive(order_by_name(order), overlap, steps_per_patch=steps_per_patch).num_steps(grid)


def _windows(patches: int, window: int, overlap: float) -> int:
    """Return the number of windows along a side; all lengths are in patches."""
    stride = max(1, window - round(overlap * window))
    return 1 + max(0, -(-(patches - window) // stride))


def _extended(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return a quadratic polynomial through the last three points at `at`, without negative coefficients.

    A polynomial without its negative terms is larger: costs are overestimated. Fewer points are extended as a square.
    """
    if len(points) < 3:
        last, value = points[-1]
        return value * max(at / last, (at / last) ** 2)
    (x1, y1), (x2, y2), (x3, y3) = points[-3:]
    slope = (y2 - y1) / (x2 - x1)
    square = ((y3 - y2) / (x3 - x2) - slope) / (x3 - x1)
    linear = slope - square * (x1 + x2)
    constant = y1 - linear * x1 - square * x1**2
    return max(constant, 0.0) + max(linear, 0.0) * at + max(square, 0.0) * at**2
