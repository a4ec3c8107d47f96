"""Estimated cost of draw requests, and a check that it stays within the limits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from asyncdiff.memory import available_memory, check_memory
from asyncdiff.tasks.arguments import format_size
from asyncdiff.tasks.drawing_cost import DrawingCost, Estimate, steps_of_order
from asyncdiff.web.draw_request import DrawRequest, requested_size
from asyncdiff.web.limits import Limits

TILED_OVERLAP = 0.5  # default of the tasks Outpaint and Texture


def estimate(request: DrawRequest, cost: DrawingCost) -> Estimate:
    """Return the estimated cost of a request."""
    size = requested_size(request) or cost.window
    guidance = cost.class_guidance if request.guidance != 1 and request.label is not None else 1.0
    guidance *= cost.input_guidance if request.input_guidance else 1.0
    larger = any(side > window for side, window in zip(size, cost.window, strict=True))
    if request.kind == "texture" or (request.kind == "extend" and larger):
        return cost.in_windows(
            size,
            TILED_OVERLAP,
            tileable=request.tileable,
            images=request.count,
            steps=request.steps,
            guidance=guidance,
            gif=request.movie,
        )
    return cost.together(
        size,
        images=request.count,
        steps=_steps(request, cost),
        ordered=request.ordered,
        guidance=guidance,
        gif=request.movie,
    )


def check_cost(request: DrawRequest, cost: DrawingCost, limits: Limits) -> Estimate:
    """Return the estimated cost of a request; raise ValueError, with a remedy, if it exceeds the limits or memory."""
    estimated = estimate(request, cost)
    if estimated.seconds > limits.seconds:
        raise ValueError(
            f"a request must take at most {format_duration(limits.seconds)}, got about "
            f"{format_duration(estimated.seconds)} for {_describe(request, cost)}: {_remedy(request, cost, limits)}"
        )
    size, remedy = format_size(requested_size(request) or cost.window), "choose a smaller size or fewer images"
    if cost.free is not None:
        check_memory("the images", size, int(estimated.memory), remedy, available=cost.free)
    host = estimated.host_memory + (estimated.memory if cost.free is None else 0)
    check_memory("the images", size, int(host), remedy, available=available_memory())
    return estimated


def largest_size(cost: DrawingCost, limits: Limits) -> tuple[int, int] | None:
    """Return the largest size of a new image in the shape of the model's, with its own steps; None if none fits."""
    return _largest_size(DrawRequest("new", size=format_size(cost.window), movie=False), cost, limits)


def format_duration(seconds: float) -> str:
    """Format a duration with a unit that suits it, such as 45 s, 12 min or 3 h."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _steps(request: DrawRequest, cost: DrawingCost) -> int | None:
    """Return the number of sampling steps of a trajectory; None for the sampler's own."""
    if not request.ordered:
        return request.steps
    grid = cost.grid(requested_size(request) or cost.window)
    return steps_of_order(request.order, request.overlap, request.steps_per_patch, grid)


def _describe(request: DrawRequest, cost: DrawingCost) -> str:
    images = f"{request.count} images of " if request.count > 1 else ""
    steps = _steps(request, cost) or cost.steps
    return f"{images}{format_size(requested_size(request) or cost.window)} with {steps} step{'s' * (steps > 1)}"


def _remedy(request: DrawRequest, cost: DrawingCost, limits: Limits) -> str:
    """Return what to do: the largest size that fits, else the largest number of steps or images."""
    if request.kind in ("new", "texture") and (size := _largest_size(request, cost, limits)) is not None:
        return f"choose {format_size(size)} or fewer steps"
    fewer = ("steps_per_patch", "steps per patch") if request.ordered else ("steps", "steps")
    steps = request.steps_per_patch if request.ordered else request.steps or cost.steps
    for name, unit, most in ((*fewer, steps), ("count", "images", request.count)):
        if found := _largest(most, partial(_fits_with, request, cost, limits, name)):
            return f"reduce the {unit} to {found}"
    return "choose a smaller size, fewer steps and fewer images"


def _largest_size(request: DrawRequest, cost: DrawingCost, limits: Limits) -> tuple[int, int] | None:
    """Return the largest size in the shape of the requested one that fits, up to the maximum number of pixels."""
    size = requested_size(request) or cost.window
    least = cost.window if request.kind == "texture" else cost.patch

    def scaled(rows: int) -> tuple[int, int]:
        height = rows * cost.patch[0]
        columns = max(1, round(height * size[1] / size[0] / cost.patch[1]))
        return height, columns * cost.patch[1]

    def fits(rows: int) -> bool:
        height, width = scaled(rows)
        changed = replace(request, size=format_size((height, width)))
        return height * width <= limits.pixels and _fits(changed, cost, limits)

    rows = _largest(limits.pixels // cost.patch[0], fits)
    found = scaled(rows)
    return found if rows and found[0] >= least[0] and found[1] >= least[1] else None


def _fits_with(request: DrawRequest, cost: DrawingCost, limits: Limits, name: str, value: int) -> bool:
    changes: dict[str, Any] = {name: value}
    return _fits(replace(request, **changes), cost, limits)


def _fits(request: DrawRequest, cost: DrawingCost, limits: Limits) -> bool:
    return estimate(request, cost).seconds <= limits.seconds


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number in 1 .. most that fits, or 0; if a number fits, all smaller ones do."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
