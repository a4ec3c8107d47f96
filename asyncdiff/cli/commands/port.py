"""`python -m asyncdiff port CHECKPOINT --output FILE.ckpt`: a DiT or SiT of elsewhere as a checkpoint of ours."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from asyncdiff.checkpoints import object_config
from asyncdiff.checks import at_least
from asyncdiff.cli.commands.external_checkpoints import ExternalCheckpoint, read_source
from asyncdiff.cli.commands.options import command_parser
from asyncdiff.denoising.targets import NoiseTarget, Target, VelocityTarget
from asyncdiff.denoising.weightings import Epsilon, Weighting
from asyncdiff.denoising.weightings import Velocity as EqualWeights
from asyncdiff.networks.diffusers_keys import DIFFUSERS_PERIOD
from asyncdiff.networks.embeddings import MAX_PERIOD
from asyncdiff.networks.porting import DIT, SIT, Convention, Ported, ported
from asyncdiff.noise.processes import LinearVP, Process, RectifiedFlow

Kind = Literal["dit", "sit"]

DESCRIPTION = "Turn weights of DiT or SiT, or a diffusers folder of a DiT, into a checkpoint for every command."
# What a scheduler may say beside the betas.
SCHEDULE = {
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
LEVEL_VALUES = 32  # of fine-tuning: labels cost one modulation for every level of every image
IMAGE_CHANNELS = (1, 3)  # other numbers are latents


def main(args: Sequence[str]) -> None:
    """Read, port, write, and tell what became of it."""
    parser = command_parser("port", DESCRIPTION)
    parser.add_argument("checkpoint", type=Path, help="a .pt, .pth or .safetensors file, or a diffusers folder")
    parser.add_argument("--output", type=Path, required=True, help="the .ckpt file to write")
    parser.add_argument("--kind", type=Kind | None, help="of a file: DiT's and SiT's are told apart by nothing in them")
    parser.add_argument("--weights", type=Literal["auto", "ema", "raw"], default="auto", help=WEIGHTS)
    parser.add_argument("--heads", type=int | None, help="of the attention; by default the official size's")
    parser.add_argument("--image_size", type=int | None, help="side of the images, where the file does not tell")
    parser.add_argument("--frequencies", type=Literal["diffusers", "authors"] | None, help=FREQUENCIES)
    options = parser.parse_args(list(args))
    if options.output.suffix != ".ckpt" or options.output.exists():
        raise ValueError(f"--output must be a new .ckpt file, got {options.output}: name another")
    source = read_source(options.checkpoint, options.weights)
    kind = _kind(source, options.kind)
    process = _process(source, kind)
    convention = _convention(source, process, options.frequencies)
    port = ported(source.weights, convention, **_sizes(source, options))
    model = _model(port, kind, process)
    save(model, options.output)
    print("\n".join([*summary(source, kind, port, model), f"checkpoint: {options.output}"]))


def save(model: Any, file: Path) -> None:
    """Write a checkpoint of weights, as Lightning reads them."""
    import lightning

    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": model.state_dict(),
    }
    model.on_save_checkpoint(checkpoint)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, file)


def summary(source: ExternalCheckpoint, kind: Kind, port: Ported, model: Any) -> list[str]:
    """What was ported, as what, and what was not."""
    channels, size, _ = model.shape
    count = sum(p.numel() for p in model.network.parameters())
    which = {None: "", True: ", averaged weights", False: ", weights of the last step"}[source.averaged]
    assumed = ", as there is no scheduler" if source.config and not source.scheduler else ""
    with torch.device("meta"):  # another of its class is built, to know the defaults
        network = object_config.spell(model.network)
    lines = [
        f"kind: {'DiT' if kind == 'dit' else 'SiT'} in {source.layout} layout{which}",
        f"network: {network}",
        f"parameters: {count:,}",
        f"dropped: {f'{port.dropped} output channels of the learned sigma' if port.dropped else 'nothing'}",
        f"process: {object_config.spell(model.process)}{assumed}, target: {object_config.spell(model.target)}",
    ]
    if (eps := source.config.get("norm_eps", 1e-6)) != 1e-6:
        lines.append(f"normalisation: eps is 1e-06 as with the authors, {eps:g} in this folder's second norms")
    if channels in IMAGE_CHANNELS:
        return [*lines, f"images: {size}x{size} pixels of {channels} channels"]
    text = f"images: {size}x{size} latents of {channels} channels; --codec with their autoencoder shows them"
    return [*lines, text]


def _kind(source: ExternalCheckpoint, given: Kind | None) -> Kind:
    """What is in diffusers is a DiT; the authors' files do not tell."""
    if source.config and given == "sit":
        raise ValueError("--kind must be dit for a diffusers folder, got sit: diffusers has no SiT")
    if not source.config and given is None:
        raise ValueError("--kind must be given for a file, dit or sit: the two have the same weights by the same names")
    return given or "dit"


def _process(source: ExternalCheckpoint, kind: Kind) -> Process:
    """The noise process that the network was trained under."""
    if kind == "sit":
        return RectifiedFlow()
    for name, value in SCHEDULE.items():
        if (source.scheduler.get(name, value) or None) != (value or None):  # an empty list is none, too
            raise ValueError(
                f"{name} of the scheduler must be {value}, got {source.scheduler[name]}: this is no plain DiT"
            )
    names = {"beta_start": "beta_start", "beta_end": "beta_end", "steps": "num_train_timesteps"}
    return LinearVP(**{ours: source.scheduler[theirs] for ours, theirs in names.items() if theirs in source.scheduler})


def _convention(source: ExternalCheckpoint, process: Process, frequencies: str | None) -> Convention:
    """What time the network is told, and what its output means."""
    if frequencies is not None and not source.config:
        raise ValueError(f"--frequencies must be left out for a file, got {frequencies}: they are the authors'")
    if not isinstance(process, LinearVP):
        return SIT
    theirs = source.config and frequencies != "authors"
    return replace(DIT, slope=process.steps, period=DIFFUSERS_PERIOD if theirs else MAX_PERIOD)


def _sizes(source: ExternalCheckpoint, options: Any) -> dict[str, int | None]:
    """The sizes that the shapes do not tell, from the options or from the folder's configuration."""
    sizes = {}
    for name, key in (("heads", "num_attention_heads"), ("image_size", "sample_size")):
        given, told = options[name], source.config.get(key)
        if given is not None:
            at_least(f"--{name}", given, 1, "leave it out for the file's own")
        if told is not None and given not in (None, told):
            raise ValueError(f"--{name} must be left out, got {given}: the folder's config.json has {told}")
        sizes[name] = given if told is None else told
    return sizes


def _model(port: Ported, kind: Kind, process: Process) -> Any:
    """The module that draws with the network, and what to start fine-tuning from."""
    from asyncdiff.sampling.samplers import Sampler
    from asyncdiff.sampling.solvers import DDIM
    from asyncdiff.training.module import AsyncDiffusion  # late: it loads Lightning

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


WEIGHTS = "of a file that holds several sets; averaged ones where it has any by default"
FREQUENCIES = """of the time embedding of a diffusers folder: its own, by default, or those that the authors trained
their weights with, which diffusers replaces by slightly others"""
