"""Tiny autoencoders (TAESD and its relatives, madebyollin/taesd): a few convolutions that replace a large network.

diffusers' `AutoencoderTiny` gives the same numbers for TAESD, but lacks the pools of TAEF2, without which the
reconstructions of TAEF2 lose 12 dB.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asyncdiff.checkpoints import read_safely
from asyncdiff.checkpoints.loaded_tensors import check_tensors
from asyncdiff.latents.autoencoder import Autoencoder, DType

STAGES = 4  # resolutions, each half the previous one
BLOCKS = 3  # residual blocks per stage, except the finest, which has one
LIMIT = 3.0  # soft limit of the latents' magnitude
# First and last convolution of each network, which give the numbers of channels.
ENDS = {"encoder": ("0.weight", "14.weight"), "decoder": ("1.weight", "19.weight")}

Features = Float[Tensor, "b width h w"]


class TinyAutoencoder(Autoencoder):
    """Codec made of an encoder and a decoder with TAESD's layout: TAESD, TAESDXL, TAESD3, TAEF1, TAEF2.

    The networks work on pixels in [0, 1]. The numbers of channels, and whether the coarsest blocks have pools, are read
    from the tensors' shapes.

    Args:
        encoder: file with the encoder's weights, .safetensors or .pth (read without running any code in it).
        decoder: file with the decoder's weights.
        scale: factor applied to the shifted latents, one number or one per channel; TAESD's latents need none.
        shift: number subtracted from raw latents, or one per channel.
        dtype: data type that the networks compute in; results are always float32.
    """

    def __init__(
        self,
        encoder: str,
        decoder: str,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        dtype: DType = "float32",
    ):
        super().__init__(scale, shift, dtype)
        self.encoder = encoder
        self.decoder = decoder

    @property
    def channels(self) -> int:
        return self._sizes[1]

    @property
    def pixel_channels(self) -> int:
        return self._sizes[0]

    @property
    def factor(self) -> int:
        return 2 ** (STAGES - 1)

    def load_network(self) -> nn.Module:
        network = nn.ModuleDict()
        for name, build in (("encoder", build_encoder), ("decoder", build_decoder)):
            state = self._read_state(name)
            width, pooled = len(state[ENDS[name][0]]), any(".pool." in key for key in state)
            network[name] = build(*self._sizes, width, pooled=pooled)
            try:
                network[name].load_state_dict({key: tensor.float() for key, tensor in state.items()})
            except RuntimeError as error:
                raise ValueError(
                    f"{name} must have TAESD's layout, got {getattr(self, name)} with another one: "
                    f"{' '.join(str(error).split()[:40])}"
                ) from error
        return network

    def encode_raw(self, network: nn.Module, images: Tensor) -> tuple[Tensor, None]:
        return network["encoder"]((images + 1) / 2), None  # type: ignore[index]

    def decode_raw(self, network: nn.Module, raw: Tensor) -> Tensor:
        return network["decoder"](raw) * 2 - 1  # type: ignore[index]

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """Numbers of channels of images and latents."""
        states = {name: self._read_state(name) for name in ENDS}
        encoded, decoded = (
            (states[name][first].shape[1], states[name][last].shape[0]) for name, (first, last) in ENDS.items()
        )
        if encoded != decoded[::-1]:
            raise ValueError(
                f"decoder must map the encoder's {encoded[1]} channels to {encoded[0]}, got {decoded[0]} to "
                f"{decoded[1]} in {self.decoder}: use an encoder and a decoder from the same autoencoder"
            )
        return encoded

    def _read_state(self, name: str) -> dict[str, Tensor]:
        """Read a file's tensors; raise ValueError unless it has the two convolutions that give the sizes."""
        path = getattr(self, name)
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"{name} must be an existing weights file, got {path}: set model.codec, or --codec, to the path of one"
            )
        try:
            state = load_file(file) if file.suffix == ".safetensors" else read_safely(file)
        except SafetensorError as error:
            raise ValueError(f"{name} must be a safetensors file, got {path}: {error}") from error
        if not isinstance(state, Mapping) or not all(isinstance(state.get(key), Tensor) for key in ENDS[name]):
            raise ValueError(
                f"{name} must have TAESD's layout, got {path} without {' and '.join(ENDS[name])}: "
                "use DiffusersAutoencoder for a folder with a config.json"
            )
        check_tensors(state, path, "download the file again")
        return dict(state)


class Block(nn.Module):
    """Residual block, preceded by a second one with group normalization over the entire image if `pooled`.

    Args:
        width: number of channels.
        pooled: whether to add the branch whose four groups of channels are normalized over the entire image.
    """

    def __init__(self, width: int, pooled: bool):
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        widen, narrow = (nn.Conv2d(*sizes, 1, bias=False) for sizes in ((width, 4 * width), (4 * width, width)))
        self.pool = nn.Sequential(widen, nn.GroupNorm(4, 4 * width), nn.ReLU(), narrow) if pooled else None

    def forward(self, x: Features) -> Features:
        """Return `x` after the residual branches, in the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class SoftLimit(nn.Module):
    """Soft clamp of latents to (-LIMIT, LIMIT)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return LIMIT * tanh(x / LIMIT)."""
        return LIMIT * torch.tanh(x / LIMIT)


def build_encoder(pixel_channels: int, channels: int, width: int, *, pooled: bool) -> nn.Sequential:
    """Build the network from images in [0, 1] to latents; only its coarsest stage can be `pooled`."""
    layers: list[nn.Module] = [_conv(pixel_channels, width), Block(width, pooled=False)]
    for stage in range(1, STAGES):
        layers.append(_conv(width, width, stride=2, bias=False))
        layers += [Block(width, pooled and stage == STAGES - 1) for _ in range(BLOCKS)]
    return nn.Sequential(*layers, _conv(width, channels))


def build_decoder(pixel_channels: int, channels: int, width: int, *, pooled: bool) -> nn.Sequential:
    """Build the network from latents to images in [0, 1]; only its coarsest stage can be `pooled`."""
    layers: list[nn.Module] = [SoftLimit(), _conv(channels, width), nn.ReLU()]
    for stage in range(STAGES - 1, 0, -1):
        layers += [Block(width, pooled and stage == STAGES - 1) for _ in range(BLOCKS)]
        layers += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width, pooled=False), _conv(width, pixel_channels))


def _conv(before: int, after: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)
