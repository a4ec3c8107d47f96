"""Checks of the arguments of `AsyncDiffusion`, made when the model is built rather than at the first step."""

from collections.abc import Sequence
from typing import Any

from asyncdiff.checks import at_least, within
from asyncdiff.noise.paths import check_path
from asyncdiff.sampling.samplers import Sampler


def check_arguments(model: Any) -> None:
    """Raise ValueError if arguments of an `AsyncDiffusion` are out of range or contradict each other."""
    model.weighting.check(model.levels)
    if model.weighting.needs_slopes and model.level_values:
        raise ValueError(
            f"level_values must be 0 under {type(model.weighting).__name__}, got {model.level_values}: "
            "rounded levels have no slope"
        )
    if model.level_values < 0 or model.level_values == 1:
        raise ValueError(f"level_values must be 0 (continuous) or at least 2, got {model.level_values}: try 256")
    within("label_dropout", model.label_dropout, 0, 1, "0.1 is common")
    at_least("predict_batch_size", model.predict_batch_size, 1, "set the number of images per batch")
    at_least("uncertainty_weight", model.uncertainty_weight, 0, "Patch Forcing uses 0.01")
    if model.codec is not None:
        check_codec(model, model.codec.channels_if_available())
    grid = model.denoiser.grid(model.shape[1:])
    model.levels.check(grid)
    if model.sampler.refresh > 1 and not hasattr(model.network, "kv_cache"):
        kind = type(model.network).__name__
        raise ValueError(
            f"sampler.refresh must be 1 for {kind}, which computes all patches, got {model.sampler.refresh}: "
            "leave it out"
        )
    if isinstance(model.sampler, Sampler):
        check_path(model.sampler.path, grid)


def check_codec(model: Any, channels: int | None) -> None:
    """Raise ValueError if a codec's `channels` differ from those of the model; None means not known yet."""
    if channels not in (None, model.shape[0]):
        raise ValueError(
            f"network.channels must be the codec's {channels}, got {model.shape[0]}: set it, or use another model.codec"
        )


def check_labels(labels: Sequence[int] | None, classes: int) -> None:
    """Raise ValueError for labels outside 0 .. classes - 1, or for any labels if the model is unconditional."""
    if labels is None:
        return
    if not classes:
        raise ValueError("labels must be None for a model trained without classes: leave them out")
    wrong = [k for k in labels if not 0 <= int(k) < classes]
    if wrong:
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {wrong[0]}")
