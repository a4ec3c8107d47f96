"""Randomness as an argument: one generator for a batch, or one per image, so that image i depends on seed i only."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def counter_key(*counters: int) -> int:
    """A 63-bit seed that is a fixed function of its counters, such as (seed, epoch, batch, rank), on every machine."""
    digest = hashlib.blake2b(",".join(map(str, counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator started at `seed`."""
    return torch.Generator(device).manual_seed(seed)


def per_image(seeds: Iterable[int]) -> list[torch.Generator]:
    """One generator per image, on the CPU, so that a seed means the same image on every device."""
    return [seeded(int(seed)) for seed in seeds]


def forked(generator: Generators) -> Generators:
    """Generators of their own, seeded by these: what is drawn from them leaves the draws of these as they are."""
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        return seeded(int(torch.randint(2**62, (), generator=generator, device=generator.device)), generator.device)
    return [fork for g in generator if isinstance(fork := forked(g), torch.Generator)]


@dataclass(frozen=True)
class RandomSource:
    """Where the random numbers of a batch of level maps come from, and what the maps are to be.

    Attributes:
        batch: number of images.
        grid: (gh, gw) of the level maps.
        generator: one for the batch, or one per image; with None torch's own.
        device: where the maps are wanted.
        dtype: floating type of the maps.
    """

    batch: int
    grid: tuple[int, int]
    generator: Generators = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def uniform(self, *shape: int) -> Tensor:
        """(batch, *shape) numbers in [0, 1); row i comes from image i's generator where every image has one."""
        return uniform((self.batch, *shape), generator=self.generator, device=self.device, dtype=self.dtype)

    def normal(self, *shape: int) -> Tensor:
        """(batch, *shape) standard normal numbers; row i comes from image i's generator where every image has one."""
        return normal((self.batch, *shape), generator=self.generator, device=self.device, dtype=self.dtype)

    def stratified(self) -> Tensor:
        """(batch,) numbers, each U(0, 1), spread evenly: equal steps from one random offset (VDM, arXiv:2107.00630).

        With one generator per image there is no batch to stratify over: the numbers are independent.
        """
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            return self.uniform()
        shared = {"generator": self.generator, "device": self.device}
        offset = uniform((1,), dtype=self.dtype, **shared)  # type: ignore[arg-type]
        # The order is random, so that an image's place in the batch (its class, its neighbours) says nothing of it.
        order = uniform((self.batch,), **shared).argsort()  # type: ignore[arg-type]
        # Rounding may bring a sum to 1, which is no progress that anyone asked for.
        return (offset + order.to(self.dtype) / self.batch).remainder(1)


def uniform(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`; with one generator per image, row i is drawn from generator i alone."""
    return _draw(torch.rand, shape, generator, device, dtype)


def normal(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers of `shape`; with one generator per image, row i is drawn from generator i alone."""
    return _draw(torch.randn, shape, generator, device, dtype)


def _draw(draw, shape: Sequence[int], generator: Generators, device, dtype: torch.dtype) -> Tensor:  # type: ignore[no-untyped-def]
    if generator is None:
        return draw(tuple(shape), device=device, dtype=dtype)
    if isinstance(generator, torch.Generator):
        return draw(tuple(shape), generator=generator, device=generator.device, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"generator must hold one generator per image, got {len(generator)} for {shape[0]} images")
    rows = [draw(tuple(shape[1:]), generator=g, device=g.device, dtype=dtype) for g in generator]
    return torch.stack(rows).to(device)
