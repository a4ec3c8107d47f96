"""Tiny autoencoders (TAESD and its relatives, madebyollin/taesd): a few convolutions that stand in for a large one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asyncdiff.checkpoints import read_safely
from asyncdiff.latents.autoencoder import Autoencoder, DType

STAGES = 4  # resolutions, each half of the one before
BLOCKS = 3  # in every stage but the finest, which has one
LIMIT = 3.0  # of latents, softly
# Where in the two sequences a tensor tells a size: first and last convolution, and a pool of the coarsest stage.
FIRST, LAST, POOL = ("0", "14", "11.pool"), ("1", "19", "3.pool"), "0.weight"

Features = Float[Tensor, "b width h w"]


class TinyAutoencoder(Autoencoder):
    """An encoder and a decoder of TAESD's layout, pixel values [0, 1] inside: TAESD, TAESDXL, TAESD3, TAEF1, TAEF2.

    The numbers of channels, and whether the coarsest blocks have pools, are read from the tensors' shapes.

    Args:
        encoder: file of its weights, .safetensors or .pth (read without running anything in it).
        decoder: file of its weights.
        scale: of the latents, one number or one per channel; tiny ones are used as they are.
        shift: subtracted from raw latents, one number or one per channel.
        dtype: that the networks compute in.
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
        self._sizes: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self._channels()[1]

    @property
    def pixel_channels(self) -> int:
        """Channels of the images."""
        return self._channels()[0]

    @property
    def factor(self) -> int:
        """8: three stages halve the sides."""
        return 2 ** (STAGES - 1)

    def read(self) -> nn.Module:
        """Both networks."""
        encoder, decoder = self._states()
        pixels, channels = self._channels()
        width = len(encoder["0.weight"])
        networks = {
            "encoder": (encoder_of(pixels, channels, width, pooled=f"{FIRST[2]}.{POOL}" in encoder), encoder),
            "decoder": (decoder_of(pixels, channels, width, pooled=f"{LAST[2]}.{POOL}" in decoder), decoder),
        }
        for name, (network, state) in networks.items():
            try:
                network.load_state_dict({key: tensor.float() for key, tensor in state.items()})
            except RuntimeError as error:
                raise ValueError(
                    f"{name} must have TAESD's layout, got {getattr(self, name)}: {' '.join(str(error).split()[:40])}"
                ) from error
        return nn.ModuleDict({name: network for name, (network, _) in networks.items()})

    def encoded(self, network: nn.Module, images: Tensor) -> tuple[Tensor, None]:
        """Latents of a few images; there is no variance."""
        return network["encoder"]((images + 1) / 2), None  # type: ignore[index]

    def decoded(self, network: nn.Module, raw: Tensor) -> Tensor:
        """A few images."""
        return network["decoder"](raw) * 2 - 1  # type: ignore[index]

    def _channels(self) -> tuple[int, int]:
        """Channels of the images and of the latents, read once."""
        if self._sizes is None:
            encoder, decoder = self._states()
            ends = (encoder[f"{FIRST[0]}.weight"].shape[1], encoder[f"{FIRST[1]}.weight"].shape[0])
            back = (decoder[f"{LAST[1]}.weight"].shape[0], decoder[f"{LAST[0]}.weight"].shape[1])
            if ends != back:
                raise ValueError(
                    f"decoder must take the {ends[1]} channels of its encoder back to {ends[0]}, got {back[1]} to "
                    f"{back[0]} in {self.decoder}: name two files of one kind"
                )
            self._sizes = ends
        return self._sizes

    def _states(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return _state("encoder", self.encoder, FIRST), _state("decoder", self.decoder, LAST)


class Block(nn.Module):
    """A residual block, with a pooled one before it where `pooled`.

    Args:
        width: channels.
        pooled: whether it adds what four groups of channels say of the whole picture, by their normalisation.
    """

    def __init__(self, width: int, pooled: bool):
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool: nn.Module | None = None
        if pooled:
            wide = 4 * width
            self.pool = nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )

    def forward(self, x: Features) -> Features:
        """x, and what the block adds."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class SoftLimit(nn.Module):
    """Latents kept within `LIMIT` without an edge."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """LIMIT * tanh(x / LIMIT)."""
        return LIMIT * torch.tanh(x / LIMIT)


def encoder_of(pixel_channels: int, channels: int, width: int, *, pooled: bool) -> nn.Sequential:
    """Images in [0, 1] to latents; the coarsest stage is the pooled one."""
    layers: list[nn.Module] = [_conv(pixel_channels, width), Block(width, pooled=False)]
    for stage in range(1, STAGES):
        layers.append(_conv(width, width, stride=2, bias=False))
        layers += [Block(width, pooled and stage == STAGES - 1) for _ in range(BLOCKS)]
    return nn.Sequential(*layers, _conv(width, channels))


def decoder_of(pixel_channels: int, channels: int, width: int, *, pooled: bool) -> nn.Sequential:
    """Latents to images in [0, 1]; the coarsest stage is the pooled one."""
    layers: list[nn.Module] = [SoftLimit(), _conv(channels, width), nn.ReLU()]
    for stage in range(STAGES - 1, 0, -1):
        layers += [Block(width, pooled and stage == STAGES - 1) for _ in range(BLOCKS)]
        layers += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width, pooled=False), _conv(width, pixel_channels))


def _conv(before: int, after: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)


def _state(name: str, path: str, layout: tuple[str, str, str]) -> dict[str, Tensor]:
    """The tensors of a file, refused unless it has the two convolutions that tell the sizes."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"{name} must be a file of weights, got {path}, which does not exist: set model.codec, or --codec, to "
            "where it lies"
        )
    try:
        state = load_file(file) if file.suffix == ".safetensors" else read_safely(file)
    except SafetensorError as error:
        raise ValueError(f"{name} must be a safetensors file, got {path}: {error}") from error
    ends = [f"{part}.weight" for part in layout[:2]]
    if not isinstance(state, Mapping) or not all(isinstance(state.get(end), Tensor) for end in ends):
        raise ValueError(
            f"{name} must have TAESD's layout, got {path} without {' and '.join(ends)}: "
            "a folder with a config.json is for DiffusersAutoencoder"
        )
    return dict(state)
