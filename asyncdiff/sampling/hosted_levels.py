"""Level maps that the host knows as well as the device, so that a walk never waits for the device to learn them.

Whether any patch moves, which patches a KV cache recomputes and which distinct levels a network embeds depends on the
level maps alone. They are small and are computed on the host, ahead of the device, which receives copies.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress, islice

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from asyncdiff.devices import to_device
from asyncdiff.shapes import IndexedLevels, LevelMap, Levels, indexed, level_map

CHUNK = 2**20  # levels that are copied to a GPU at once: 12 MB with their indices, in float32
MAX_MAPS = 64  # level maps that are computed at once, so that no step is delayed by many later ones


@dataclass(frozen=True, eq=False)
class HostedLevels(IndexedLevels):
    """Level map on a device, with its distinct levels, that is known on the host, too.

    Attributes:
        levels: the level map in full, on the device.
        host: the same on the CPU; None if the host knows only which levels may occur.
        host_values: `values` on the CPU.
    """

    levels: Float[Tensor, "b rows columns"]
    host: Float[Tensor, "b rows columns"] | None
    host_values: Float[Tensor, " r"]

    @property
    def t(self) -> LevelMap:
        """The level map as a tensor on the device."""
        return self.levels

    def repeat(self, *sizes: int) -> "HostedLevels":
        """Return the map repeated along its three axes, like the repeat of a tensor."""
        levels = self.levels.repeat(*sizes)
        host = levels if self.host is self.levels else None if self.host is None else self.host.repeat(*sizes)
        return HostedLevels(self.values, self.index.repeat(*sizes), levels, host, self.host_values)


def hosted(t: LevelMap, device: torch.device | str = "cpu") -> HostedLevels:
    """Return a level map of the host on a device as well.

    Args:
        t: level map on the CPU.
        device: device that gets a copy.

    Returns:
        The map with its distinct levels in ascending order.
    """
    return _copied([t], device)[0]


def hosted_in_turn(maps: Iterable[LevelMap], device: torch.device | str) -> Iterator[HostedLevels]:
    """Yield level maps of the host on a device as well, ahead of their use by few maps, so that memory stays bounded.

    Args:
        maps: level maps of one shape on the CPU. Equal ones in a row are yielded as one object.
        device: device that gets copies, of many maps at once.
    """
    maps, size = iter(maps), 1
    current: HostedLevels | None = None
    while chunk := list(islice(maps, size)):
        before = [None if current is None else current.host, *chunk]
        changed = [last is None or not torch.equal(t, last) for last, t in zip(before, chunk, strict=False)]
        copies = iter(_copied(list(compress(chunk, changed)), device))
        for new in changed:
            current = next(copies) if new or current is None else current
            yield current
        # The first map is not delayed by the others. Without copies nothing is gained by more than one at once.
        limit = min(MAX_MAPS, CHUNK // chunk[0].numel()) if torch.device(device).type != "cpu" else 1
        size = max(1, min(2 * size, limit))


def _copied(maps: list[LevelMap], device: torch.device | str) -> list[HostedLevels]:
    each = [indexed(t) for t in maps]
    if torch.device(device).type == "cpu" or not maps:
        return [HostedLevels(d.values, d.index, t, t, d.values) for d, t in zip(each, maps, strict=True)]
    levels = to_device(torch.stack(maps), device)
    values = _split(torch.cat([d.values for d in each]), [len(d.values) for d in each], device)
    index = _split(torch.cat([d.index.flatten() for d in each]), [d.index.numel() for d in each], device)
    return [
        HostedLevels(values[k], index[k].view(d.index.shape), levels[k], maps[k], d.values) for k, d in enumerate(each)
    ]


def _split(x: Shaped[Tensor, " n"], lengths: list[int], device: torch.device | str) -> tuple[Tensor, ...]:
    return to_device(x, device).split(lengths)


def levels_on_host(t: Levels) -> Float[Tensor, "*levels"]:
    """Return all levels that may occur in a map, on the CPU; waits for the device unless the host knows them."""
    return t.host_values if isinstance(t, HostedLevels) else level_map(t).cpu()


def map_on_host(t: Levels) -> LevelMap:
    """Return a level map on the CPU; waits for the device unless the host knows it."""
    return t.host if isinstance(t, HostedLevels) and t.host is not None else level_map(t).cpu()
