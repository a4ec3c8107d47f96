"""Randomness as an argument: one generator for a batch, or one per image, so that image i depends on seed i only."""

import hashlib
from collections.abc import Iterable, Sequence

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
