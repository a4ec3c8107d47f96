"""Autoencoders of the library diffusers, by a local folder or a name on the Hugging Face hub."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asyncdiff.latents.autoencoder import Autoencoder, DType

# Classes with the scaling factor that they have where their config.json, an early one, tells none.
CLASSES = {"AutoencoderKL": 0.18215, "VQModel": 0.18215, "AutoencoderTiny": 1.0}
WITHIN = ("", "vae", "vqvae")  # where a pipeline's folder keeps its autoencoder
CONFIG = "config.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Place(NamedTuple):
    """Where an autoencoder lies, and what its config.json says."""

    subfolder: str
    config: dict[str, Any]


class DiffusersAutoencoder(Autoencoder):
    """`AutoencoderKL`, `VQModel` or `AutoencoderTiny`, whichever the config.json names.

    Raw latents are those that the library's `encode` gives: of AutoencoderKL the posterior's moments, of VQModel what
    is quantised at decoding. Weights are read from safetensors, or else as tensors only.

    Args:
        path: a folder with a config.json, that of a pipeline with a subfolder vae or vqvae, or a name on the hub such
            as "stabilityai/sd-vae-ft-ema".
        subfolder: in `path`; by default found.
        scale: of the latents, one number or one per channel; by default what the config.json says.
        shift: subtracted from raw latents, one number or one per channel.
        dtype: that the network computes in.
    """

    def __init__(
        self,
        path: str,
        subfolder: str | None = None,
        scale: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
        dtype: DType = "float32",
    ):
        super().__init__(scale, shift, dtype)
        self.path = path
        self.subfolder = subfolder
        self._found: Place | None = None

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        config = self._place().config
        if config["_class_name"] == "VQModel":
            return int(config.get("vq_embed_dim") or config.get("latent_channels", 3))
        return int(config.get("latent_channels", 4))

    @property
    def pixel_channels(self) -> int:
        """Channels of the images."""
        return int(self._place().config.get("in_channels", 3))

    @property
    def factor(self) -> int:
        """2 for every stage but the first."""
        config = self._place().config
        tiny = config["_class_name"] == "AutoencoderTiny"
        key, usual = ("encoder_block_out_channels", 4) if tiny else ("block_out_channels", 1)
        return 2 ** (len(config.get(key, [None] * usual)) - 1)

    def channels_at_hand(self) -> int | None:
        """`channels` where the config.json lies here, None otherwise: nothing is fetched."""
        return self.channels if self._found is not None or self._folder().is_dir() else None

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Scale and shift per channel: the given ones, or those of the config.json."""
        config = self._place().config
        means = config.get("latents_mean") or config.get("shift_factor") or 0.0
        factor = config.get("scaling_factor") or CLASSES[config["_class_name"]]
        # As diffusers' pipelines do: the deviations, where there are any, come on top of the factor.
        deviations = config.get("latents_std")
        scales = [factor / deviation for deviation in deviations] if deviations else factor
        return (
            self._per_channel("scale", scales if self.scale is None else self.scale),
            self._per_channel("shift", means if self.shift is None else self.shift),
        )

    def read(self) -> nn.Module:
        """The library's network."""
        place, diffusers = self._place(), _diffusers()
        kind = getattr(diffusers, place.config["_class_name"])
        source = str(self._folder()) if self._folder().is_dir() else self.path
        try:
            network, told = kind.from_pretrained(
                source,
                subfolder=place.subfolder or None,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"path must hold weights that fit its {CONFIG}, got {self.path}: {_in_short(error)}"
            ) from error
        if told["missing_keys"]:
            raise ValueError(
                f"path must hold all weights of a {kind.__name__}, got {self.path} without {told['missing_keys'][0]}: "
                "fetch it again"
            )
        assert isinstance(network, nn.Module), "the library's models are modules"
        return network

    def encoded(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Moments of a few images."""
        encode: Callable[[Tensor], Any] = network.encode  # type: ignore[assignment]
        found = encode(images)
        if hasattr(found, "latent_dist"):
            return found.latent_dist.mean, found.latent_dist.logvar
        return found.latents, None

    def decoded(self, network: nn.Module, raw: Tensor) -> Tensor:
        """A few images."""
        decode: Callable[[Tensor], Any] = network.decode  # type: ignore[assignment]
        images: Tensor = decode(raw).sample
        return images

    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    def _place(self) -> Place:
        """The autoencoder's place, found once."""
        if self._found is None:
            self._found = self._search()
        return self._found

    def _search(self) -> Place:
        local = self._folder().is_dir()
        if not local and not HUB_NAME.fullmatch(self.path):
            raise FileNotFoundError(
                f"path must be a folder with a {CONFIG} or OWNER/NAME of the hub, got {self.path}, which does not "
                "exist: set model.codec, or --codec, to where it lies"
            )
        others = []
        for subfolder in WITHIN if self.subfolder is None else (self.subfolder,):
            file = self._folder() / subfolder / CONFIG if local else _fetched(self.path, subfolder)
            if file is None or not file.is_file():
                continue
            config = _read(file)
            name = config.get("_class_name")
            if name in CLASSES:
                return Place(subfolder, config)
            others.append(f"a {name or 'nameless class'}")
        found = ", ".join(others) or ("none in it" if local else "none there, or no connection")
        raise FileNotFoundError(
            f"path must have a {CONFIG} of {', '.join(CLASSES)}, got {self.path}: {found}; "
            "name its folder, with subfolder where it is a part"
        )


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("DiffusersAutoencoder needs the package diffusers, got none: pip install diffusers") from error
    return diffusers


def _fetched(name: str, subfolder: str) -> Path | None:
    """The config.json of a model on the hub, None if there is none or no way to it."""
    _diffusers()
    from huggingface_hub import hf_hub_download  # comes with diffusers

    try:
        return Path(hf_hub_download(name, CONFIG, subfolder=subfolder or None))
    except (OSError, ValueError):  # of whichever kind: not there, no connection, no name
        return None


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} must be JSON, got something else: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a mapping, got a {type(config).__name__}: is it a {CONFIG} of diffusers?")
    return config


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split()[:30])
