"""Check the arguments of `AsyncDiffusion` when the model is built rather than at the first step."""

from typing import Any

from asyncdiff.checks import at_least, within
from asyncdiff.noise.paths import check_path
from asyncdiff.sampling.samplers import Sampler


def check_arguments(model: Any) -> None:
    """Raise ValueError if arguments of an `AsyncDiffusion` are out of range or contradict each other."""
    model.weighting.check(model.levels)
    if model.weighting.needs_slopes and model.level_values:
        raise ValueError(
            f"level_values must be 0 with the weighting {type(model.weighting).__name__}, got {model.level_values}: "
            "set it to 0, since rounded levels have no slope"
        )
    if model.level_values < 0 or model.level_values == 1:
        raise ValueError(
            f"level_values must be 0 (continuous) or at least 2, got {model.level_values}: use 256, for example"
        )
    within("label_dropout", model.label_dropout, 0, 1, "use 0.1, for example")
    at_least("uncertainty_weight", model.uncertainty_weight, 0, "use 0.01, as Patch Forcing does")
    if model.codec is not None:
        check_codec(model, model.codec.channels_if_available())
    grid = model.denoiser.grid(model.shape[1:])
    model.levels.check(grid)
    if model.sampler.refresh > 1 and not hasattr(model.network, "kv_cache"):
        kind = type(model.network).__name__
        raise ValueError(
            f"sampler.refresh must be 1 for {kind}, which has no KV cache, got {model.sampler.refresh}: "
            "omit refresh, or use a DiT"
        )
    if isinstance(model.sampler, Sampler):
        check_path(model.sampler.path, grid)


def check_codec(model: Any, channels: int | None) -> None:
    """Raise ValueError if the codec's number of channels is known and differs from the model's."""
    if channels not in (None, model.shape[0]):
        raise ValueError(
            f"network.channels must equal the codec's {channels}, got {model.shape[0]}: set it to {channels}, or "
            "choose another model.codec"
        )
