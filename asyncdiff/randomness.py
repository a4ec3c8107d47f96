"""Random numbers from explicit generators: one for a batch, or one per image, so that image i depends only on seed i.

With one generator per image, an image does not depend on the batch size or the number of devices.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asyncdiff.devices import to_device

Generators = torch.Generator | Sequence[torch.Generator] | None


def counter_key(*counters: int) -> int:
    """Hash counters, such as (seed, epoch, batch, rank), to a 63-bit seed that is the same on every machine."""
    digest = hashlib.blake2b(",".join(map(str, counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator with this seed; raise ValueError if the seed has more than 64 bits."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"a seed must have at most 64 bits, got {seed}: choose one below 2**64")
    return torch.Generator(device).manual_seed(seed)


def per_image(seeds: Iterable[int]) -> list[torch.Generator]:
    """Return one CPU generator per seed, so that a seed gives the same image on every device.

    Args:
        seeds: one seed per image.

    Returns:
        Generators to pass as the argument `generator`.

    Examples:
        >>> batch = normal((3, 2), generator=per_image([7, 8, 9]))
        >>> bool((batch[1] == normal((1, 2), generator=per_image([8]))[0]).all())
        True
    """
    return [seeded(int(seed)) for seed in seeds]


def fork(generator: Generators) -> Generators:
    """Return independent generators derived from `generator`.

    Draws exactly one number from each generator, no matter how many are later drawn from its fork.
    """
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        return _child(generator)
    return [_child(g) for g in generator]


def _child(generator: torch.Generator) -> torch.Generator:
    number = torch.randint(2**62, (), generator=generator, device=generator.device)
    if generator.device.type == "cpu":
        return seeded(int(number), generator.device)
    # Reading the number would wait for the device; seed and position in the sequence are known to the host.
    return seeded(counter_key(*generator.get_state().tolist()), generator.device)


@dataclass(frozen=True)
class RandomSource:
    """Source of random numbers for a batch of level maps; also defines their shape, device and data type.

    Attributes:
        batch: number of images.
        grid: (gh, gw) of the level maps.
        generator: one generator for the batch, or one per image; None for torch's global one.
        device: device of the maps.
        dtype: floating-point type of the maps.
    """

    batch: int
    grid: tuple[int, int]
    generator: Generators = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def select(self, rows: Sequence[int]) -> "RandomSource":
        """Return the source for the images `rows` only; it needs one generator per image."""
        if self.generator is None or isinstance(self.generator, torch.Generator):
            raise ValueError("generator must be one per image to select images, got a single one: use per_image(seeds)")
        return replace(self, batch=len(rows), generator=[self.generator[i] for i in rows])

    def uniform(self, *shape: int) -> Tensor:
        """Draw (batch, *shape) uniform numbers in [0, 1); with one generator per image, row i uses generator i."""
        return uniform((self.batch, *shape), generator=self.generator, device=self.device, dtype=self.dtype)

    def normal(self, *shape: int) -> Tensor:
        """Draw (batch, *shape) standard normal numbers; with one generator per image, row i uses generator i."""
        return normal((self.batch, *shape), generator=self.generator, device=self.device, dtype=self.dtype)

    def stratified(self) -> Tensor:
        """Return (batch,) stratified U(0, 1) numbers, evenly spaced from one random offset (VDM, arXiv:2107.00630).

        With one generator per image the numbers are independent, since an image must not depend on its batch.
        """
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            return self.uniform()
        offset = uniform((1,), generator=self.generator, device=self.device, dtype=self.dtype)
        # The order is random, so that an image's number does not depend on its place in the batch.
        order = uniform((self.batch,), generator=self.generator, device=self.device).argsort()
        # Rounding can bring a sum to 1, which is outside [0, 1).
        return (offset + order.to(self.dtype) / self.batch).remainder(1)


def uniform(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw uniform numbers in [0, 1) of `shape`; with one generator per image, row i comes from generator i alone."""
    return _draw(torch.rand, shape, generator, device, dtype)


def normal(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal numbers of `shape`; with one generator per image, row i comes from generator i alone."""
    return _draw(torch.randn, shape, generator, device, dtype)


def _draw(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    if generator is None:
        return draw(tuple(shape), device=device, dtype=dtype)
    if isinstance(generator, torch.Generator):
        return to_device(draw(tuple(shape), generator=generator, device=generator.device, dtype=dtype), device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"generator needs one generator per image, got {len(generator)} for {shape[0]} images: "
            "use randomness.per_image(seeds) with one seed per image"
        )
    # Drawn ahead of a GPU into pinned memory, from which it is copied without waiting.
    drawn_on = generator[0].device
    pinned = drawn_on.type == "cpu" and torch.device(device).type == "cuda"
    rows = torch.empty(tuple(shape), dtype=dtype, device=drawn_on, pin_memory=pinned)
    for row, each in zip(rows, generator, strict=True):
        draw(row.shape, generator=each, dtype=dtype, device=drawn_on, out=row)
    return rows.to(device, non_blocking=pinned)
