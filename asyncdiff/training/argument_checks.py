"""Check the arguments of `AsyncDiffusion` when the model is built rather than at the first step."""

import math
import os
import shutil
from typing import Any

from asyncdiff.checks import MAX_SIDE, at_least, check_seeds, finite, within
from asyncdiff.denoising.weightings import Weighting
from asyncdiff.memory import available_memory, check_memory
from asyncdiff.model import DiffusionModel
from asyncdiff.noise.level_samplers import LevelSampler
from asyncdiff.noise.paths import check_path
from asyncdiff.sampling.samplers import Sampler
from datamodules.base import ImageDataModule, Split

IMAGES_PER_STEP = 4  # images that exist at the same time in a training step: clean, noise, noisy, predicted
BYTES = 4  # of a 32-bit number
COMPILERS = ("gcc", "g++", "clang", "clang++", "cc", "c++")  # that PyTorch and Triton look for, except on Windows
MAX_LEVEL_VALUES = 2**16  # a network computes that many modulations per step: more than there are patches


def check_ranges(*, label_dropout: float, level_values: int, uncertainty_weight: float, seed: int) -> None:
    """Raise ValueError if an argument of an `AsyncDiffusion` is out of range."""
    finite("level_values", level_values, "use 256, for example")
    if level_values != 0 and not 2 <= level_values <= MAX_LEVEL_VALUES:
        raise ValueError(
            f"level_values must be 0 (continuous) or lie in [2, {MAX_LEVEL_VALUES}], got {level_values}: use 256, for "
            "example"
        )
    within("label_dropout", label_dropout, 0, 1, "use 0.1, for example")
    at_least("uncertainty_weight", uncertainty_weight, 0, "use 0.01, as Patch Forcing does")
    check_seeds("seed", [seed])


def check_compiler() -> None:
    """Raise ValueError if there is no compiler, without which `torch.compile` fails in the first step."""
    named = any(os.environ.get(variable) for variable in ("CC", "CXX"))
    if os.name == "posix" and not named and not any(map(shutil.which, COMPILERS)):
        raise ValueError("model.compiled needs a C++ compiler, found none: install g++, or set model.compiled to false")


def check_image_size(model: DiffusionModel) -> None:
    """Raise ValueError if a training step for a single image would not fit into memory."""
    size, channels = model.image_size, model.shape[0]
    within("image_size", size, 1, MAX_SIDE, "set the side length of the images of the data")
    one, free = IMAGES_PER_STEP * channels * BYTES, available_memory()
    remedy = f"use at most {math.isqrt(free // one)}"
    check_memory("image_size", size, one * size * size, remedy, available=free)


def check_batches(model: DiffusionModel, data: Any) -> None:
    """Raise ValueError if the images of one batch of the data would not fit into memory; other data is not asked."""
    if not isinstance(data, ImageDataModule):
        return
    one, free = math.prod(model.shape) * BYTES, available_memory()
    splits: dict[str, Split] = {"batch_size": "train", "eval_batch_size": "val"}
    for name, split in splits.items():
        size = getattr(data, name)
        needed = min(size, len(data.dataset(split))) * one
        check_memory(f"data.{name}", size, needed, f"use at most {free // one}", available=free)


def check_training(model: DiffusionModel, levels: LevelSampler, weighting: Weighting, level_values: int) -> None:
    """Raise ValueError if a model cannot be trained with these levels and this weighting."""
    check_image_size(model)
    weighting.check(levels)
    if weighting.needs_slopes and level_values:
        raise ValueError(
            f"level_values must be 0 with the weighting {type(weighting).__name__}, got {level_values}: "
            "set it to 0, since rounded levels have no slope"
        )
    levels.check(model.denoiser.grid(model.shape[1:]))


def check_sampling(model: DiffusionModel) -> None:
    """Raise ValueError if the sampler or the codec of a model does not fit its network."""
    if model.codec is not None:
        check_codec(model, model.codec.channels_if_available())
    if model.sampler.refresh > 1 and not hasattr(model.network, "kv_cache"):
        kind = type(model.network).__name__
        raise ValueError(
            f"sampler.refresh must be 1 for {kind}, which has no KV cache, got {model.sampler.refresh}: "
            "omit refresh, or use a DiT"
        )
    if isinstance(model.sampler, Sampler):
        check_path(model.sampler.path, model.denoiser.grid(model.shape[1:]))


def check_codec(model: DiffusionModel, channels: int | None) -> None:
    """Raise ValueError if the codec's number of channels is known and differs from the model's."""
    if channels not in (None, model.shape[0]):
        raise ValueError(
            f"network.channels must equal the codec's {channels}, got {model.shape[0]}: set it to {channels}, or "
            "choose another model.codec"
        )
