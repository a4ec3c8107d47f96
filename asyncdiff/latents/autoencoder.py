"""Codecs that are networks: loaded at first use, asked a few images at a time, kept out of everything that is saved."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asyncdiff.latents.codec import Codec, Moments, check_numbers
from asyncdiff.shapes import Image, Latents

DType = Literal["float32", "float16", "bfloat16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# At once: one image of 1024x1024, 4 of 512x512. Stable Diffusion's decoder takes about 5 GB for them in float32.
PIXELS_AT_ONCE = 2**20
LOGVAR = (-30.0, 20.0)  # as diffusers clamps it


class Autoencoder(Codec):
    """A codec of a frozen network. Subclasses read it, encode and decode with it.

    Args:
        scale: of the latents, one number or one per channel.
        shift: subtracted from raw latents, one number or one per channel; model space is (raw - shift) * scale.
        dtype: that the network computes in; results are float32 always.
    """

    def __init__(
        self,
        scale: float | Sequence[float] | None,
        shift: float | Sequence[float] | None,
        dtype: DType,
    ):
        check_numbers("scale", scale)
        check_numbers("shift", shift)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}: float32 is exact")
        self.scale = scale
        self.shift = shift
        self.dtype: DType = dtype
        self._device = torch.device("cpu")
        self._loaded: tuple[nn.Module, str] | None = None

    @abstractmethod
    def read(self) -> nn.Module:
        """The network in float32 on the CPU; ValueError or FileNotFoundError of one line if it cannot be read."""

    @abstractmethod
    def encoded(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of a few images, raw."""

    @abstractmethod
    def decoded(self, network: nn.Module, raw: Tensor) -> Tensor:
        """A few images of raw latents."""

    def moments(self, images: Image) -> Moments:
        """Raw latents; see `Codec.moments`."""
        self.check_images(images)
        network = self._network()

        def encoded(part: Tensor) -> tuple[Tensor, ...]:
            mean, logvar = self.encoded(network, part)
            return (mean.float(),) if logvar is None else (mean.float(), logvar.float().clamp(*LOGVAR))

        found = self._in_parts(encoded, images, images.shape[2] * images.shape[3])
        return Moments(found[0], found[1] if len(found) > 1 else None)

    def decode(self, latents: Latents) -> Image:
        """Images; see `Codec.decode`."""
        raw, network = self.unscaled(latents.float()), self._network()
        pixels = latents.shape[2] * latents.shape[3] * self.factor**2
        (images,) = self._in_parts(lambda part: (self.decoded(network, part).float(),), raw, pixels)
        return images

    def weights(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the network's float32 weights."""
        self._network()
        assert self._loaded is not None, "the network is loaded"
        return self._loaded[1]

    def to(self, device: torch.device | str) -> "Autoencoder":
        """Itself, computing on the device from now on."""
        self._device = torch.device(device)
        if self._loaded is not None:
            self._loaded[0].to(self._device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What the constructor was given: copies read the files themselves."""
        return self.__dict__ | {"_loaded": None, "_device": torch.device("cpu")}

    def _network(self) -> nn.Module:
        if self._loaded is None:
            # Whenever that is, in a validation say: no draw of a training may move, no tensor be one of inference only.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                network = self.read().eval().requires_grad_(False)
                told = hashed(network.state_dict())
                self._loaded = network.to(self._device, DTYPES[self.dtype]), told
        return self._loaded[0]

    @torch.no_grad()
    def _in_parts(self, compute: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, pixels: int) -> tuple[Tensor, ...]:
        """What `compute` makes of x, few images of so many pixels at a time; on the device of x."""
        rows = []
        # Autocast would make results depend on who asks.
        with torch.autocast(self._device.type, enabled=False):
            for part in x.split(max(1, PIXELS_AT_ONCE // pixels)):
                found = compute(part.to(self._device, DTYPES[self.dtype]))
                rows.append(tuple(tensor.to(x.device) for tensor in found))
        return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def hashed(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names; hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
