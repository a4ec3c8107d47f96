"""Check the arguments of `AsyncDiffusion` when the model is built rather than at the first step."""

from asyncdiff.checks import at_least, within
from asyncdiff.denoising.weightings import Weighting
from asyncdiff.model import DiffusionModel
from asyncdiff.noise.level_samplers import LevelSampler
from asyncdiff.noise.paths import check_path
from asyncdiff.sampling.samplers import Sampler


def check_ranges(*, label_dropout: float, level_values: int, uncertainty_weight: float) -> None:
    """Raise ValueError if an argument of an `AsyncDiffusion` is out of range."""
    if level_values < 0 or level_values == 1:
        raise ValueError(f"level_values must be 0 (continuous) or at least 2, got {level_values}: use 256, for example")
    within("label_dropout", label_dropout, 0, 1, "use 0.1, for example")
    at_least("uncertainty_weight", uncertainty_weight, 0, "use 0.01, as Patch Forcing does")


def check_training(model: DiffusionModel, levels: LevelSampler, weighting: Weighting, level_values: int) -> None:
    """Raise ValueError if a model cannot be trained with these levels and this weighting."""
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
