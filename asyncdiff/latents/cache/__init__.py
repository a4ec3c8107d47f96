"""Encode images into a cache of latents on disk, which `datamodules.LatentCache` reads.

A shard depends only on its settings, since no batch spans two shards. A cache whose encoding was killed and resumed, by
any number of processes, therefore has the same bytes as an uninterrupted one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints.atomic_files import remove_stale
from asyncdiff.latents import Codec
from asyncdiff.latents.cache.encode import check_fits, encode
from asyncdiff.latents.cache.manifest import finish
from asyncdiff.latents.cache.shards import Settings, Shard, check_existing_shards, depends_on, plan
from datamodules.storage.latent_shards import DamagedError, check_sha256, open_shards, read_header, read_manifest

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
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Encode this process's share of the shards, and write the manifest once all shards exist.

    Args:
        data: data module with images.
        codec: codec, already on the device to compute on.
        out: folder of the cache; complete shards in it are kept.
        settings: splits, data type and shard size of the cache.
        batch_size: number of images encoded together; other sizes give the same latents up to rounding.
        rank: index of this process, which encodes the shards rank, rank + world, ...
        world: number of processes.
        report: function called with one line for every damaged shard.

    Returns:
        The manifest, or None while other processes have shards left to encode.
    """
    check_fits(data, codec)
    shards = plan(data, codec, out, settings)
    out.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    check_existing_shards(out, shards)
    missing = [shard for shard in shards[rank::world] if not is_complete(shard, report)]
    encode(missing, data, codec, settings, batch_size=batch_size, shown=rank == 0)
    return finish(out, shards, data, codec)


def is_complete(shard: Shard, report: Callable[[str], None]) -> bool:
    """Return whether a shard exists and is intact; report a damaged one."""
    if not shard.file.exists():
        return False
    try:
        check_sha256(read_header(shard.file))
        if depends_on(shard.file) is None:
            raise DamagedError(f"{shard.file} is damaged, its settings cannot be read: ")
    except DamagedError as error:
        report(f"{str(error).rpartition(':')[0]}: encoding it again")
        return False
    return True


def verify(root: Path) -> dict[str, Any]:
    """Return the manifest of a cache, after comparing every byte of the cache with its checksums.

    Raises:
        DamagedError: a file is damaged; the one-line message names the first such file and the remedy.
        FileNotFoundError: a file is missing; the one-line message names it.
    """
    manifest = read_manifest(root)
    for split in manifest["splits"].values():
        for header in open_shards(root, split):
            check_sha256(header)
    return manifest
