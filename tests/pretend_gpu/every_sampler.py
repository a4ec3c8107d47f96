"""Every level sampler there is: those of experiments/levels, and one for each class of `asyncdiff.noise`."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path as File
from typing import Any, TypeVar

import asyncdiff.noise
from asyncdiff.checkpoints import object_config
from asyncdiff.noise import (
    AlongPath,
    AsyncPatch,
    CleanPatches,
    Conditioned,
    Field,
    Floored,
    LevelSampler,
    Mask,
    Order,
    Ordered,
    PartiallyNoised,
    Path,
    PerlinField,
    ProgressSampler,
    RandomBoxes,
    RandomMasks,
    RandomRegions,
    Raster,
    WithCleanPatches,
)
from asyncdiff.noise.masks import MASKS
from asyncdiff.yaml_files import read_yaml

T = TypeVar("T")
LAYERS = File(__file__).resolve().parents[2] / "experiments" / "levels"
# Values of arguments without a default, by name.
REQUIRED: dict[str, Any] = {
    "levels": AlongPath(),
    "path": AsyncPatch(),
    "order": Raster(),
    "grid": [[0, 1], [2, 3]],
    "maps": [[[0.1, 0.5], [0.5, 0.9]]],
    "masks": list(MASKS.values()),
    "contexts": [RandomBoxes(), RandomRegions(PerlinField())],
}
OF_GIVEN_IMAGES = (Conditioned, PartiallyNoised)  # paths of images of a sampler, which no level sampler follows
# A level sampler for an object of each family.
FAMILIES: dict[type, Callable[[Any], LevelSampler]] = {
    LevelSampler: lambda sampler: sampler,
    Path: AlongPath,
    Order: lambda order: AlongPath(Ordered(order, 0.5)),
    Field: lambda field: AlongPath(AsyncPatch(field=field)),
    ProgressSampler: lambda progress: AlongPath(Floored(AsyncPatch(), 0.01), progress),
    CleanPatches: lambda clean: WithCleanPatches(AlongPath(), 0.5, clean),
    Mask: lambda mask: WithCleanPatches(AlongPath(), 0.5, RandomMasks([mask])),
}


def every_class(family: type[T], module: Any) -> Iterator[type[T]]:
    """Yield the classes of a family that a module offers."""
    for name in module.__all__:
        kind = getattr(module, name)
        if inspect.isclass(kind) and issubclass(kind, family) and not inspect.isabstract(kind):
            yield kind


def every_instance(family: type[T], module: Any) -> Iterator[T]:
    """Yield one object of every class of a family that a module offers; KeyError for an argument without an example."""
    for kind in every_class(family, module):
        if kind not in OF_GIVEN_IMAGES:
            arguments = inspect.signature(kind).parameters.values()
            yield kind(**{a.name: REQUIRED[a.name] for a in arguments if a.default is a.empty})


def every_sampler() -> dict[str, LevelSampler]:
    """Return every level sampler by name."""
    samplers = {}
    for file in sorted(LAYERS.glob("*.yaml")):
        samplers[file.stem] = object_config.build(read_yaml(file)["model"]["levels"], ["asyncdiff"])
    for family, make in FAMILIES.items():
        for instance in every_instance(family, asyncdiff.noise):
            samplers[type(instance).__name__] = make(instance)
    return samplers
