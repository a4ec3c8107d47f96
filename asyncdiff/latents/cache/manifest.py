"""Write the manifest of a cache once all shards are complete; its bytes do not depend on which process writes it."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.latents import Codec
from asyncdiff.latents.cache.encode import channel_statistics
from asyncdiff.latents.cache.shards import SPLITS, Shard, data_arguments, depends_on
from asyncdiff.regular_files import open_regular
from datamodules.storage.latent_shards import (
    MANIFEST,
    VERSION,
    DamagedError,
    Header,
    manifest_sha256,
    read_header,
)


def finish(out: Path, shards: list[Shard], data: Any, codec: Codec) -> dict[str, Any] | None:
    """Write the manifest and return it, or return None if a shard is missing."""
    headers = {}
    for shard in shards:
        try:
            header = read_header(shard.file)
        except (FileNotFoundError, DamagedError):  # another process has yet to write it
            return None
        if depends_on(shard.file) != shard.depends:
            return None
        headers[shard.file.name] = header
    splits = existing_splits(out)
    for split, group in groupby(shards, lambda shard: shard.split):
        splits[split] = describe_split(list(group), headers, codec)
    manifest = {
        "version": VERSION,
        "codec": codec.fingerprint(),
        "made_by": object_config.describe(codec),
        "data": {
            "class_path": object_config.class_path(type(data)),
            "init_args": dict(data_arguments(data)),
            "size": data.size,
            "channels": data.channels,
            "crop": getattr(data, "crop", None),
            **({"label_names": list(data.label_names)} if getattr(data, "label_names", None) else {}),
        },
        "splits": {name: splits[name] for name in SPLITS if name in splits},
    }
    manifest = json.loads(json.dumps(manifest))  # as readers see it: tuples become lists
    manifest["sha256"] = manifest_sha256(manifest)
    write_atomically(out / MANIFEST, [(json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()])
    return manifest


def existing_splits(out: Path) -> dict[str, Any]:
    """Return the splits of an existing manifest; their shards have already been checked."""
    try:
        with open_regular(out / MANIFEST) as stream:
            return dict(json.load(stream)["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def describe_split(shards: list[Shard], headers: dict[str, Header], codec: Codec) -> dict[str, Any]:
    """Return the manifest entry for a split."""
    entries, sums, unreadable = [], [], 0
    for shard in shards:
        header = headers[shard.file.name]
        layout = header.layout
        sums.append(json.loads(header.metadata["sums"]))
        unreadable += int(header.metadata["unreadable"])
        entries.append(
            {
                "file": shard.file.name,
                "count": layout.count,
                "bytes": header.start + layout.bytes,
                "sha256": header.metadata["sha256"],
                "header": header.sha256,
            }
        )
    return {
        "count": sum(entry["count"] for entry in entries),
        "unreadable": unreadable,
        "classes": shards[0].depends["classes"],
        "dtype": layout.dtype,
        "shape": list(layout.shape),
        "views": layout.views,
        "moments": ["mean", "logvar"][: layout.moments],
        "shards": entries,
        **channel_statistics(sums, *codec.normalization()),
    }
