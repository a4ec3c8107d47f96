"""Base class of codecs that run a network: loaded at first use, run in small chunks, never saved with a model."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.export.load import tensors_sha256
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.devices import to_device
from asyncdiff.latents.codec import Codec, Moments, check_numbers
from asyncdiff.shapes import Image, Latents

DType = Literal["float32", "float16", "bfloat16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Maximum number of pixels per network call: one image of 1024x1024 or four of 512x512, for which Stable Diffusion's
# decoder takes about 5 GB in float32.
PIXELS_AT_ONCE = 2**20
LOGVAR = (-30.0, 20.0)  # range that diffusers clamps log-variances to


class LoadedNetwork(NamedTuple):
    """Network in memory, in the codec's data type and on its device, and the SHA-256 of its float32 weights."""

    network: nn.Module
    sha256: str


class Autoencoder(Codec):
    """Base class of codecs that run a frozen network. Subclasses load it, encode and decode with it.

    Args:
        scale: factor applied to the shifted latents, one number or one per channel.
        shift: number subtracted from raw latents, or one per channel; model space is (raw - shift) * scale.
        dtype: data type that the network computes in; results are always float32.
    """

    def __init__(self, scale: float | Sequence[float] | None, shift: float | Sequence[float] | None, dtype: DType):
        check_numbers("scale", scale)
        check_numbers("shift", shift)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}: use float32 for exact results")
        self.scale, self.shift = scale, shift
        self.dtype: DType = dtype
        self._device = torch.device("cpu")
        self._loaded: LoadedNetwork | None = None

    @abstractmethod
    def load_network(self) -> nn.Module:
        """Return the network in float32 on the CPU; raise FileNotFoundError or ValueError with a one-line message."""

    @abstractmethod
    def encode_raw(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the raw mean and log-variance of a few images; the latter is None for a deterministic encoder."""

    @abstractmethod
    def decode_raw(self, network: nn.Module, raw: Tensor) -> Tensor:
        """Decode a few raw latents into images."""

    def moments(self, images: Image) -> Moments:
        self.check_images(images)
        network = self._load().network

        def encode_chunk(part: Tensor) -> tuple[Tensor, ...]:
            mean, logvar = self.encode_raw(network, part)
            return (mean.float(),) if logvar is None else (mean.float(), logvar.float().clamp(*LOGVAR))

        moments = self._in_chunks(encode_chunk, images, images.shape[2] * images.shape[3])
        return Moments(moments[0], moments[1] if len(moments) > 1 else None)

    def decode(self, latents: Latents) -> Image:
        raw, network = self.unscaled(latents.float()), self._load().network
        pixels = latents.shape[2] * latents.shape[3] * self.factor**2
        (images,) = self._in_chunks(lambda part: (self.decode_raw(network, part).float(),), raw, pixels)
        return images

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the names, types, shapes and bytes of the network's float32 weights."""
        return self._load().sha256

    def to(self, device: torch.device | str) -> "Autoencoder":
        self._device = torch.device(device)
        if self._loaded is not None:
            self._loaded.network.to(self._device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the network, which every copy loads from the files again."""
        return self.__dict__ | {"_loaded": None, "_device": torch.device("cpu")}

    def _load(self) -> LoadedNetwork:
        """Return the network, loaded at the first call."""
        if self._loaded is None:
            # Loading can happen at any time, for example during validation. It must not advance the random numbers of
            # training, and the weights must not become inference tensors.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                network = self.load_network().eval().requires_grad_(False)
                sha256 = tensors_sha256(network.state_dict())
                network = network.to(self._device, DTYPES[self.dtype])
                # Also of the converted weights: large numbers are infinite in float16.
                remedy = f"download the weights again{'' if self.dtype == 'float32' else ', or set dtype to float32'}"
                buffers = dict(network.named_buffers())
                check_tensors(network.state_dict(), object_config.format_call(self), remedy, buffers=buffers)
                self._loaded = LoadedNetwork(network, sha256)
        return self._loaded

    @torch.no_grad()
    def _in_chunks(self, compute: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, pixels: int) -> tuple[Tensor, ...]:
        """Apply `compute` to `x` in chunks of a few images of `pixels` pixels; results are on the device of `x`."""
        # Under autocast, results would depend on the caller.
        with torch.autocast(self._device.type, enabled=False):
            parts = (to_device(part, self._device) for part in x.split(max(1, PIXELS_AT_ONCE // pixels)))
            chunks = [compute(part.to(DTYPES[self.dtype])) for part in parts]
            return tuple(torch.cat(tensors).to(x.device) for tensors in zip(*chunks, strict=True))
