"""Autoencoders from the diffusers library, loaded from a local folder or the Hugging Face Hub."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asyncdiff.checkpoints.json_files import read_json
from asyncdiff.latents.autoencoder import Autoencoder, DType

# Supported classes, with the scaling factor for old config.json files that lack it.
CLASSES = {"AutoencoderKL": 0.18215, "VQModel": 0.18215, "AutoencoderTiny": 1.0}
SUBFOLDERS = ("", "vae", "vqvae")  # where pipelines keep their autoencoder
CONFIG = "config.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Location(NamedTuple):
    """Subfolder of an autoencoder and the contents of its config.json."""

    subfolder: str
    config: dict[str, Any]


class DiffusersAutoencoder(Autoencoder):
    """Codec that wraps an `AutoencoderKL`, `VQModel` or `AutoencoderTiny`, whichever the config.json names.

    Raw latents are those that the library's `encode` returns: the posterior's moments for AutoencoderKL, the latents
    before quantization for VQModel, which quantizes when decoding. Weights are read from safetensors files, or else
    from PyTorch files, as tensors only.

    Args:
        path: folder with a config.json, folder of a pipeline with a subfolder vae or vqvae, or a name on the Hugging
            Face Hub such as "stabilityai/sd-vae-ft-ema".
        subfolder: subfolder of `path` with the autoencoder; found automatically by default.
        scale: factor applied to the shifted latents, one number or one per channel; by default from the config.json.
        shift: number subtracted from raw latents, or one per channel; by default from the config.json.
        dtype: data type that the network computes in; results are always float32.
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

    @property
    def channels(self) -> int:
        config = self._location.config
        if config["_class_name"] == "VQModel":
            return int(config.get("vq_embed_dim") or config.get("latent_channels", 3))
        return int(config.get("latent_channels", 4))

    @property
    def pixel_channels(self) -> int:
        return int(self._location.config.get("in_channels", 3))

    @property
    def factor(self) -> int:
        config = self._location.config
        tiny = config["_class_name"] == "AutoencoderTiny"
        key, default = ("encoder_block_out_channels", 4) if tiny else ("block_out_channels", 1)
        return 2 ** (len(config.get(key, [None] * default)) - 1)  # every stage except the first halves it

    def channels_if_available(self) -> int | None:
        return self.channels if "_location" in vars(self) or self._folder().is_dir() else None

    def default_normalization(self) -> tuple[float | Sequence[float], float | Sequence[float]]:
        config = self._location.config
        means: float | Sequence[float] = config.get("latents_mean") or config.get("shift_factor") or 0.0
        factor = config.get("scaling_factor") or CLASSES[config["_class_name"]]
        # As in diffusers' pipelines: latents are divided by their standard deviations, if given, and multiplied by the
        # factor.
        deviations = config.get("latents_std")
        scales: float | Sequence[float] = [factor / deviation for deviation in deviations] if deviations else factor
        return scales, means

    def load_network(self) -> nn.Module:
        location, diffusers = self._location, _import_diffusers()
        kind = getattr(diffusers, location.config["_class_name"])
        source = str(self._folder()) if self._folder().is_dir() else self.path
        try:
            loaded: tuple[nn.Module, dict[str, Any]] = kind.from_pretrained(
                source,
                subfolder=location.subfolder or None,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the weights in {self.path} cannot be loaded with its {CONFIG}: {_shorten(error)}"
            ) from error
        network, info = loaded
        if info["missing_keys"]:
            raise ValueError(
                f"{self.path} must contain all weights of a {kind.__name__}, got none called "
                f"{info['missing_keys'][0]}: download it again"
            )
        return network

    def encode_raw(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        output: Any = network.encode(images)  # type: ignore[operator]
        if hasattr(output, "latent_dist"):
            return output.latent_dist.mean, output.latent_dist.logvar
        return output.latents, None

    def decode_raw(self, network: nn.Module, raw: Tensor) -> Tensor:
        images: Tensor = network.decode(raw).sample  # type: ignore[operator]
        return images

    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def _location(self) -> Location:
        local = self._folder().is_dir()
        if not local and not HUB_NAME.fullmatch(self.path):
            raise FileNotFoundError(
                f"path must be a folder with a {CONFIG}, or OWNER/NAME on the Hugging Face Hub, got {self.path}: set "
                "model.codec, or --codec, to the path of an existing folder"
            )
        others = []
        for subfolder in SUBFOLDERS if self.subfolder is None else (self.subfolder,):
            file = self._folder() / subfolder / CONFIG if local else _fetch_config(self.path, subfolder)
            if file is None or not file.is_file():
                continue
            config = read_json(file, "download it again")
            name = config.get("_class_name")
            if name in CLASSES:
                return Location(subfolder, config)
            others.append(name or "no class")
        found = f"one for {', '.join(others)}" if others else "none"
        unreachable = "" if local or others else " or cannot be reached"
        raise FileNotFoundError(
            f"path must contain a {CONFIG} for {', '.join(CLASSES)}, got {self.path}, which has {found}{unreachable}: "
            "use the autoencoder's folder, and set subfolder if it is part of a pipeline"
        )


def _import_diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            "DiffusersAutoencoder needs the package diffusers, which is not installed: pip install diffusers"
        ) from error
    return diffusers


def _fetch_config(name: str, subfolder: str) -> Path | None:
    """Download a model's config.json from the Hugging Face Hub; return None if it is missing or unreachable."""
    from huggingface_hub import hf_hub_download  # slow to import

    try:
        return Path(hf_hub_download(name, CONFIG, subfolder=subfolder or None))
    except (OSError, ValueError):  # missing file, no connection or invalid name
        return None


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split()[:30])
