"""The manifest: written last, by whichever process finds all shards there, the same bytes whoever it is."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.atomic_files import replace
from asyncdiff.latents import Codec
from asyncdiff.latents.cache.encode import statistics
from asyncdiff.latents.cache.shards import SPLITS, Shard, arguments, depends_on
from datamodules.storage.latent_shards import (
    MANIFEST,
    VERSION,
    DamagedError,
    Header,
    check_shard,
    layout_in,
    read_header,
    sha256_of,
)


def finish(out: Path, shards: list[Shard], data: Any, codec: Codec) -> dict[str, Any] | None:
    """Write the manifest if all shards are there; it is returned, otherwise None."""
    headers = {}
    for shard in shards:
        try:
            header = read_header(shard.file)
            check_shard(shard.file, layout_in(shard.file, header), header)
        except (FileNotFoundError, DamagedError):  # of another process, which has not come to it
            return None
        if depends_on(shard.file) != shard.depends:
            return None
        headers[shard.file.name] = header
    splits = dict(kept_splits(out))
    for split, group in groupby(shards, lambda shard: shard.split):
        splits[split] = described(list(group), headers, codec)
    manifest = {
        "version": VERSION,
        "codec": codec.identity(),
        "made_by": object_config.describe(codec),
        "data": {
            "class_path": object_config.class_path(type(data)),
            "init_args": dict(arguments(data)),
            "size": data.size,
            "channels": data.channels,
            "crop": getattr(data, "crop", None),
        },
        "splits": {name: splits[name] for name in SPLITS if name in splits},
    }
    manifest = json.loads(json.dumps(manifest))  # as it will be read, tuples as lists
    manifest["sha256"] = sha256_of(manifest)
    replace(out / MANIFEST, [(json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()])
    return manifest


def kept_splits(out: Path) -> dict[str, Any]:
    """Splits of a manifest that lies there already; their shards have been found to fit."""
    try:
        return dict(json.loads((out / MANIFEST).read_text())["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def described(shards: list[Shard], headers: dict[str, Header], codec: Codec) -> dict[str, Any]:
    """The manifest's entry of a split."""
    entries, found = [], []
    for shard in shards:
        header = headers[shard.file.name]
        layout = layout_in(shard.file, header)
        found.append(json.loads(header.metadata["sums"]))
        entries.append(
            {
                "file": shard.file.name,
                "count": layout.count,
                "bytes": header.start + layout.bytes,
                "sha256": header.metadata["sha256"],
                "header": header.sha256,
            }
        )
    unreadable = sum(int(headers[shard.file.name].metadata["unreadable"]) for shard in shards)
    return {
        "count": sum(entry["count"] for entry in entries),
        "unreadable": unreadable,
        "classes": shards[0].depends["classes"],
        "dtype": layout.dtype,
        "shape": list(layout.shape),
        "views": layout.views,
        "moments": ["mean", "logvar"][: layout.moments],
        "shards": entries,
        **statistics(found, *codec.normalisation()),
    }
