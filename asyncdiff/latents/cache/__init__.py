"""Images through a codec into a cache of latents on disk, which `datamodules.LatentCache` reads.

A shard is a function of its settings alone: it is encoded from its own start in its own batches. So a cache that was
killed and continued, by any number of processes, has the bytes of one that was not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints.atomic_files import remove_stale
from asyncdiff.latents import Codec
from asyncdiff.latents.cache.encode import check_fits, encode
from asyncdiff.latents.cache.manifest import finish
from asyncdiff.latents.cache.shards import Settings, Shard, check_whole, plan, refuse_others
from asyncdiff.latents.cache.verify import verify
from datamodules.storage.latent_shards import DamagedError

__all__ = ["Settings", "cache", "verify"]


def cache(
    data: Any,
    codec: Codec,
    out: Path,
    settings: Settings,
    *,
    batch_size: int = 64,
    rank: int = 0,
    world: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Encode this process' share of the shards; the manifest once all are there, None before.

    Args:
        data: a data module of images.
        codec: on the device that it is to compute on.
        out: the folder; what is complete in it is kept.
        settings: of the cache.
        batch_size: images that are encoded together. Other sizes give the same latents but for rounding.
        rank: of this process, which makes the shards rank, rank + world, ...
        world: number of processes.
        tell: is given a line for every damaged shard.
    """
    check_fits(data, codec)
    shards = plan(data, codec, out, settings)
    out.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    refuse_others(out, shards)
    wanted = [shard for shard in shards[rank::world] if not kept(shard, tell)]
    encode(wanted, data, codec, settings, batch_size=batch_size, shown=rank == 0)
    return finish(out, shards, data, codec)


def kept(shard: Shard, tell: Callable[[str], None]) -> bool:
    """Whether a shard is there, whole; a damaged one is told."""
    if not shard.file.exists():
        return False
    try:
        check_whole(shard.file)
    except DamagedError as error:
        tell(f"{str(error).rpartition(':')[0]}: it is made anew")
        return False
    return True
