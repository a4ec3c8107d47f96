"""Map class paths, argument names and keys of earlier versions to the current ones.

Checkpoints, exports, run configs, prediction records and result cards name classes by their dotted paths.
`update_names` updates the contents of such a file when it is read; old names appear in no other module.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from asyncdiff.checkpoints.moved_arguments import MOVED, SECTIONS, move_arguments, update_key
from asyncdiff.checkpoints.plain_values import check_extent
from asyncdiff.checks import is_first_process

# Old -> new path of a class, or of a module whose classes kept their names. The longest match wins.
RENAMED = {
    # 0.1.0 -> 0.2.0
    "asyncdiff.adaptive": "asyncdiff.sampling",
    "asyncdiff.callbacks.Continuation": "asyncdiff.callbacks.ResumeLogging",
    "asyncdiff.callbacks.Ema": "asyncdiff.callbacks.EMA",
    "asyncdiff.callbacks.Inpainting": "asyncdiff.callbacks.InpaintingGrid",
    "asyncdiff.callbacks.Interruption": "asyncdiff.callbacks.GracefulShutdown",
    "asyncdiff.callbacks.LevelLoss": "asyncdiff.callbacks.LossByLevel",
    "asyncdiff.callbacks.StepProgress": "asyncdiff.callbacks.StepProgressBar",
    "asyncdiff.callbacks.continuation.Continuation": "asyncdiff.callbacks.ResumeLogging",
    "asyncdiff.callbacks.ema.Ema": "asyncdiff.callbacks.EMA",
    "asyncdiff.callbacks.figure.Figure": "asyncdiff.callbacks.periodic_image.PeriodicImage",
    "asyncdiff.callbacks.inpainting.Inpainting": "asyncdiff.callbacks.InpaintingGrid",
    "asyncdiff.callbacks.interruption.Interruption": "asyncdiff.callbacks.GracefulShutdown",
    "asyncdiff.callbacks.level_loss.LevelLoss": "asyncdiff.callbacks.LossByLevel",
    "asyncdiff.callbacks.measurement.Measurement": "asyncdiff.callbacks.periodic_metric.PeriodicMetric",
    "asyncdiff.callbacks.progress.StepProgress": "asyncdiff.callbacks.StepProgressBar",
    "asyncdiff.canvases.Canvas": "asyncdiff.sampling.TiledSampler",
    "asyncdiff.checkpoints.plugin": "asyncdiff.checkpoints.lightning_io",
    "asyncdiff.cli.commands.evaluate_inpainting.OnPixels": "asyncdiff.noise.masks.OnPixels",
    "asyncdiff.clocks": "asyncdiff.sampling",
    "asyncdiff.clocks.Clocks": "asyncdiff.sampling.StepRule",
    "asyncdiff.codecs": "asyncdiff.latents",
    "asyncdiff.codecs.autoencoders": "asyncdiff.latents",
    "asyncdiff.codecs.codec": "asyncdiff.latents",
    "asyncdiff.codecs.diffusers_autoencoders": "asyncdiff.latents",
    "asyncdiff.codecs.tiny_autoencoders": "asyncdiff.latents",
    "asyncdiff.contexts.Blobs": "asyncdiff.noise.RandomRegions",
    "asyncdiff.contexts.Boxes": "asyncdiff.noise.RandomBoxes",
    "asyncdiff.contexts.Context": "asyncdiff.noise.CleanPatches",
    "asyncdiff.contexts.Masks": "asyncdiff.noise.RandomMasks",
    "asyncdiff.contexts.Mixed": "asyncdiff.noise.MixedCleanPatches",
    "asyncdiff.evaluation.features.Features": "asyncdiff.evaluation.Features",
    "asyncdiff.evaluation.features.TrainedClassifier": "asyncdiff.evaluation.TrainedClassifier",
    "asyncdiff.evaluation.inception": "asyncdiff.evaluation",
    "asyncdiff.evaluation.lpips": "asyncdiff.evaluation.features.lpips",
    "asyncdiff.evaluation.lpips.Lpips": "asyncdiff.evaluation.features.lpips.LPIPS",
    "asyncdiff.evaluation.timm_features": "asyncdiff.evaluation",
    "asyncdiff.fields": "asyncdiff.noise",
    "asyncdiff.guidance": "asyncdiff.sampling",
    "asyncdiff.levels": "asyncdiff.noise",
    "asyncdiff.levels.CleanContext": "asyncdiff.noise.WithCleanPatches",
    "asyncdiff.likelihood": "asyncdiff.denoising",
    "asyncdiff.look_ahead": "asyncdiff.sampling",
    "asyncdiff.masks": "asyncdiff.noise",
    "asyncdiff.module": "asyncdiff",
    "asyncdiff.optimisation.Optimised": "asyncdiff.training.optimization.OptimizerMixin",
    "asyncdiff.optimisation.optimised.Optimised": "asyncdiff.training.optimization.OptimizerMixin",
    "asyncdiff.orders": "asyncdiff.noise",
    "asyncdiff.orders.CentreOut": "asyncdiff.noise.CenterOut",
    "asyncdiff.orders.Given": "asyncdiff.noise.CustomOrder",
    "asyncdiff.paths": "asyncdiff.noise",
    "asyncdiff.paths.Entered": "asyncdiff.noise.PartiallyNoised",
    "asyncdiff.predicted.Predicted": "asyncdiff.training.predict_mixin.PredictMixin",
    "asyncdiff.predictions": "asyncdiff.tasks",
    "asyncdiff.predictions.tasks": "asyncdiff.tasks",
    "asyncdiff.predictions.windowed": "asyncdiff.tasks",
    "asyncdiff.predictions.windowed.Windowed": "asyncdiff.tasks.tiled_tasks.TiledTask",
    "asyncdiff.processes": "asyncdiff.noise",
    "asyncdiff.repaint": "asyncdiff.sampling",
    "asyncdiff.solvers": "asyncdiff.sampling",
    "asyncdiff.solvers.Ddim": "asyncdiff.sampling.DDIM",
    "asyncdiff.spacings.FluxSpacing": "asyncdiff.noise.FluxProgress",
    "asyncdiff.spacings.LogitNormalSpacing": "asyncdiff.noise.LogitNormalProgress",
    "asyncdiff.spacings.Spacing": "asyncdiff.noise.ProgressSampler",
    "asyncdiff.spacings.UniformSpacing": "asyncdiff.noise.UniformProgress",
    "asyncdiff.strategies": "asyncdiff.training",
    "asyncdiff.targets.Clean": "asyncdiff.denoising.CleanTarget",
    "asyncdiff.targets.Noise": "asyncdiff.denoising.NoiseTarget",
    "asyncdiff.targets.Target": "asyncdiff.denoising.Target",
    "asyncdiff.targets.Velocity": "asyncdiff.denoising.VelocityTarget",
    "asyncdiff.weightings": "asyncdiff.denoising",
    "asyncdiff.weightings.Elbo": "asyncdiff.denoising.ELBO",
    # Classes that files now name by the package that exports them instead of the module.
    "datamodules.arrays": "datamodules",
    "datamodules.crops": "datamodules",
    "datamodules.digits": "datamodules",
    "datamodules.edm_latents": "datamodules",
    "datamodules.edm_zips": "datamodules",
    "datamodules.hugging_face": "datamodules",
    "datamodules.image_folder": "datamodules",
    "datamodules.imagenet": "datamodules",
    "datamodules.imagenet64": "datamodules",
    "datamodules.latents": "datamodules",
    "datamodules.lsun": "datamodules",
    "datamodules.streamed": "datamodules",
    "asyncdiff.networks.dit.DiT": "asyncdiff.networks.DiT",
    "asyncdiff.networks.unet.UNet": "asyncdiff.networks.UNet",
}
# Old -> new constructor arguments, by the current path of their class.
ARGUMENTS = {
    "asyncdiff.callbacks.Likelihood": {"spacing": "progress_sampler"},
    "asyncdiff.noise.AlongPath": {"spacing": "progress_sampler"},
    "asyncdiff.noise.WithCleanPatches": {"context": "clean_patches"},
    "asyncdiff.sampling.Adaptive": {"clocks": "step_rule"},
}
# Checkpoints store the state of a callback under its class name.
STATES = {
    old.rpartition(".")[2]: new.rpartition(".")[2]
    for old, new in RENAMED.items()
    if old.startswith("asyncdiff.callbacks.") and old.count(".") == 2
}


def update_class_path(path: str) -> str:
    """Return the current dotted path of a class named by an earlier version; other paths are returned unchanged."""
    parts = path.split(".")
    for count in range(len(parts), 1, -1):
        if new := RENAMED.get(".".join(parts[:count])):
            return ".".join([new, *parts[count:]])
    return path


def update_names(value: Any, replaced: dict[str, str] | None = None) -> Any:
    """Return a copy of nested dicts and lists with old class paths and argument names replaced by the current ones.

    Args:
        value: contents of a file: nested dictionaries, lists, tuples, strings and numbers; not modified.
        replaced: dictionary to which every old path that was replaced is added, with its new path.

    Returns:
        The updated copy.
    """
    if isinstance(value, str):
        new = update_class_path(value) if value.startswith(("asyncdiff.", "datamodules.")) else value
        if replaced is not None and new != value:
            replaced[value] = new
        return re.sub(r"(?<=\$\{)model\.[\w.]+", lambda match: update_key(match[0], replaced), new)
    if isinstance(value, (list, tuple)):
        return type(value)(update_names(item, replaced) for item in value)
    if not isinstance(value, dict):
        return value
    updated = {key: update_names(item, replaced) for key, item in value.items()}
    arguments, path = updated.get("init_args"), str(updated.get("class_path"))
    if isinstance(arguments, dict):
        names = ARGUMENTS.get(path, {})
        arguments = {names.get(key, key): item for key, item in arguments.items()}
        # A subclass of another package that inherits the constructor has all of them; one with its own may use a name.
        is_model = path == "asyncdiff.AsyncDiffusion" or MOVED.keys() <= arguments.keys()
        updated["init_args"] = move_arguments(arguments, SECTIONS) if is_model else arguments
    return updated


def update_config(config: Any, replaced: dict[str, str] | None = None) -> Any:
    """Return a copy of a run config, or of a layer of one, with current names in place of old ones.

    Args:
        config: contents of a file for train.py; not modified. Anything but a dictionary has no keys to replace.
        replaced: dictionary to which every old class path and key that was replaced is added, with its new name.

    Returns:
        The updated copy.

    Raises:
        ValueError: the file has an old and the current key of the same argument, with different values.
    """
    updated = update_names(config, replaced)
    if isinstance(updated, dict) and isinstance(updated.get("model"), dict):
        updated["model"] = move_arguments(updated["model"], replaced=replaced)
    return updated


def update_argv(argv: Sequence[str], replaced: dict[str, str] | None = None) -> list[str]:
    """Return a command line with current names in place of old class paths and options, as `update_config` does."""
    updated = []
    for argument in argv:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        key = f"--{update_key(option[2:], replaced)}" if option else ""
        updated.append(key + equals + update_names(value, replaced))
    return updated


def update_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a checkpoint with current names in its object config, codec and callback states; tensors are
    shared.
    """
    updated = dict(checkpoint)
    for key in ("recipe", "latents", "labels", "export"):
        if key in updated:
            check_extent(updated[key], f"{key} of the checkpoint")
            updated[key] = update_names(updated[key])
    if isinstance(states := updated.get("callbacks"), dict):
        updated["callbacks"] = {_update_state_key(key): state for key, state in states.items()}
    return updated


def _update_state_key(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    name, brace, rest = key.partition("{")
    return f"{STATES.get(name, name)}{brace}{rest}"


def warn_of_old_names(replaced: Mapping[str, str]) -> None:
    """Print one warning that lists replaced names, if any: once, from the first process, however often it is called."""
    if replaced and is_first_process():
        _print_once("; ".join(f"{old} is now {new}" for old, new in replaced.items()))


@cache
def _print_once(renames: str) -> None:
    print(f"warning: names of an earlier version: {renames}", file=sys.stderr)
