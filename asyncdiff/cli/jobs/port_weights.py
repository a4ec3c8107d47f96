"""Convert DiT and SiT weights of other projects to a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning
import torch

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.cli.jobs.external_checkpoints import ExternalCheckpoint, read_source
from asyncdiff.denoising.targets import NoiseTarget, Target, VelocityTarget
from asyncdiff.denoising.weightings import Epsilon, Weighting
from asyncdiff.denoising.weightings import Velocity as EqualWeights
from asyncdiff.networks.diffusers_keys import DIFFUSERS_PERIOD
from asyncdiff.networks.embeddings import MAX_PERIOD
from asyncdiff.networks.porting import DIT, SIT, Convention, PortedNetwork, port_weights
from asyncdiff.noise.processes import LinearVP, Process, RectifiedFlow
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM
from asyncdiff.training.lightning_module import AsyncDiffusion

Kind = Literal["dit", "sit"]

# Supported values of scheduler settings other than the betas.
SCHEDULE = {
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
LEVEL_VALUES = 32  # for fine-tuning; with labels, every distinct level in an image costs one modulation
IMAGE_CHANNELS = (1, 3)  # numbers of pixel channels; any other number means latents


def port(options: Any) -> None:
    """Convert the weights as the options of the command ask for, write the checkpoint and print a summary."""
    source = read_source(options.checkpoint, options.weights)
    kind = _kind(source, options.kind)
    process = _process(source, kind)
    convention = _convention(source, process, options.frequencies)
    weights = port_weights(source.weights, convention, **_sizes(source, options))
    model = _model(weights, kind, process)
    save(model, options.output)
    print("\n".join([*summary(source, kind, weights, model), f"checkpoint: {options.output}"]))


def save(model: AsyncDiffusion, file: Path) -> None:
    """Write the model's weights as a checkpoint that Lightning can load."""
    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": model.state_dict(),
    }
    model.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)


def summary(source: ExternalCheckpoint, kind: Kind, port: PortedNetwork, model: AsyncDiffusion) -> list[str]:
    """Summarize the conversion.

    Args:
        source: external checkpoint that was read.
        kind: dit or sit.
        port: converted network.
        model: module that was saved.

    Returns:
        Lines that describe the model and the weights that were dropped.
    """
    channels, size, _ = model.shape
    count = sum(p.numel() for p in model.network.parameters())
    weight_set = {None: "", True: ", EMA weights", False: ", raw weights"}[source.averaged]
    assumed = " (assumed, the folder has no scheduler)" if source.config and not source.scheduler else ""
    with torch.device("meta"):  # format_call builds another network to find its default arguments
        network = object_config.format_call(model.network)
    process = object_config.format_call(model.process)
    lines = [
        f"kind: {'DiT' if kind == 'dit' else 'SiT'} in {source.layout} layout{weight_set}",
        f"network: {network}",
        f"parameters: {count:,}",
        f"dropped: {f'{port.dropped} output channels of the learned sigma' if port.dropped else 'nothing'}",
        f"process: {process}{assumed}, target: {object_config.format_call(model.target)}",
    ]
    if (eps := source.config.get("norm_eps", 1e-6)) != 1e-6:
        lines.append(
            f"normalization: eps is 1e-06 as in the authors' code, but {eps:g} in the second norms of this folder"
        )
    if channels in IMAGE_CHANNELS:
        return [*lines, f"images: {size}x{size} pixels with {channels} channels"]
    text = f"images: {size}x{size} latents with {channels} channels; decode them with --codec"
    return [*lines, text]


def _kind(source: ExternalCheckpoint, given: Kind | None) -> Kind:
    """Return the kind of model: diffusers folders contain a DiT, files need --kind."""
    if source.config and given == "sit":
        raise ValueError("--kind must be dit for a diffusers folder, got sit: diffusers has no SiT, so drop --kind")
    if not source.config and given is None:
        raise ValueError("--kind is required for a file: add --kind dit or --kind sit, which share their weight names")
    return given or "dit"


def _process(source: ExternalCheckpoint, kind: Kind) -> Process:
    """Return the noise process that the network was trained with."""
    if kind == "sit":
        return RectifiedFlow()
    for name, value in SCHEDULE.items():
        if (source.scheduler.get(name, value) or None) != (value or None):  # an empty list means none
            raise ValueError(
                f"{name} of the scheduler must be {value}, got {source.scheduler[name]}: other values are not supported"
            )
    names = {"beta_start": "beta_start", "beta_end": "beta_end", "steps": "num_train_timesteps"}
    arguments = {name: source.scheduler[key] for name, key in names.items() if key in source.scheduler}
    return LinearVP(**arguments)


def _convention(source: ExternalCheckpoint, process: Process, frequencies: str | None) -> Convention:
    """Return the network's convention for its time input and its output."""
    if frequencies is not None and not source.config:
        raise ValueError(
            f"--frequencies applies only to a diffusers folder, got {frequencies} with a file: drop --frequencies"
        )
    if not isinstance(process, LinearVP):
        return SIT
    diffusers = source.config and frequencies != "authors"
    return replace(DIT, slope=process.steps, period=DIFFUSERS_PERIOD if diffusers else MAX_PERIOD)


def _sizes(source: ExternalCheckpoint, options: Any) -> dict[str, int | None]:
    """Return the sizes that the shapes of the weights leave open, from the options or as the source records them."""
    recorded = {"heads": source.config.get("num_attention_heads"), "image_size": source.config.get("sample_size")}
    recorded |= {"classes": source.classes}
    for name, value in recorded.items():
        if None not in (value, options[name]) and options[name] != value:
            place = "the folder's config.json" if source.config else "the file"
            raise ValueError(f"--{name} is {options[name]}, but {place} has {value}: drop --{name}")
    return {name: options[name] if value is None else value for name, value in recorded.items()}


def _model(port: PortedNetwork, kind: Kind, process: Process) -> AsyncDiffusion:
    """Return an AsyncDiffusion module around the network, ready for sampling and fine-tuning."""
    dit = kind == "dit"
    target: Target = NoiseTarget() if dit else VelocityTarget()
    weighting: Weighting = Epsilon() if dit else EqualWeights()
    return AsyncDiffusion(
        port.network,
        weighting=weighting,
        process=process,
        target=target,
        sampler=Sampler(solver=DDIM(), steps=50),
        image_size=port.image_size,
        level_values=LEVEL_VALUES,
    )
