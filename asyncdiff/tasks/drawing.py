"""Draw the requests of tasks with `asyncdiff.sampling`: on one trajectory, or in windows of the model's size."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from asyncdiff.model import Model
from asyncdiff.precision import each_within
from asyncdiff.sampling import engine
from asyncdiff.sampling.samplers import ImageSampler, Sampler
from asyncdiff.sampling.tiling import TiledSampler, TilingState
from asyncdiff.sampling.trajectories import Frame
from asyncdiff.shapes import Image
from asyncdiff.tasks.pixel_space import PixelSpace
from asyncdiff.tasks.requests import Request, State


@torch.no_grad()
def draw_together(model: Model, sampler: ImageSampler, batch: Sequence[Request]) -> Iterator[State]:
    """Yield the states of drawing images of one size on one sampling trajectory each.

    Args:
        model: model that draws.
        sampler: sampler of the images.
        batch: requests of one kind and size.

    Yields:
        The states, from noise to the result.
    """
    space, size = PixelSpace(model), batch[0].size
    encoded_size = space.encoded_size(size)
    total = sampler.num_steps(model.denoiser.grid(encoded_size)) if isinstance(sampler, Sampler) else None
    photo = space.stack(batch)
    known = () if photo is None else space.encode(photo)
    labels = [request.label for request in batch if request.label is not None] or None
    images = engine.ImageBatch([request.seed for request in batch], labels, *known)

    def show(frame: Frame) -> Image:  # before the end, known pixels of partly known patches are as noisy as these
        return space.decode(frame.x_t, size, photo=photo if frame.s == 0 else None)

    frames = engine.frames(model.denoiser, sampler, images, (model.shape[0], *encoded_size))
    for done, frame in enumerate(each_within(model.sampling_context, frames)):
        yield State(partial(show, frame), frame.t, done, total)


@torch.no_grad()
def draw_in_windows(model: Model, sampler: TiledSampler, request: Request) -> Iterator[State]:
    """Yield the states of drawing one image of any size in overlapping windows.

    Args:
        model: model that draws.
        sampler: sampler that generates the windows around each other.
        request: request for the image.

    Yields:
        The states: before the first window, and after each batch of windows.
    """
    space = PixelSpace(model)
    photo = space.stack([request])
    exemplar, place = (None, (0, 0)) if request.photo is None else space.encode_exemplar(request.photo)

    def show(state: TilingState) -> Image:
        return space.decode(state.canvas[None], request.size, photo=photo, tileable=sampler.tileable)

    steps = sampler.steps(
        model.denoiser,
        size=space.encoded_size(request.size),
        shape=model.shape,
        seed=request.seed,
        label=request.label,
        exemplar=exemplar,
        place=place,
        device=engine.device_of(model.denoiser),
    )
    for state in each_within(model.sampling_context, steps):
        yield State(partial(show, state), None, state.done, state.windows)
