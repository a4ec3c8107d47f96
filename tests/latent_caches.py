"""Latent caches in the format that the command writes, from given arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from asyncdiff.latents.cache.write_shard import write_shard
from datamodules.storage.latent_shards import MANIFEST, Layout, manifest_sha256, read_header, shard_name


def write_latent_cache(
    root: Path, splits: dict[str, dict[str, np.ndarray]], *, shard: int, scale: list[float], shift: list[float]
) -> Path:
    """Write the mean, logvar (n, views, c, h, w), label and index of every split in shards of some rows."""
    made: dict[str, Any] = {}
    for split, arrays in splits.items():
        count, views, *shape = arrays["mean"].shape
        about = {"dtype": "float16", "shape": shape, "views": views, "moments": ["mean", "logvar"]}
        made[split] = about | {"count": count, "classes": int(arrays["label"].max()) + 1, "shards": []}
        starts = range(0, count, shard)
        for number, first in enumerate(starts):
            part = {name: array[first : first + shard] for name, array in arrays.items()}
            layout = Layout(len(part["label"]), views, (shape[0], shape[1], shape[2]), "float16", 2)
            write_shard(root / shard_name(split, number, len(starts)), layout, part, {"unreadable": "0"})
            header = read_header(root / shard_name(split, number, len(starts)))
            sums = {"sha256": header.metadata["sha256"], "header": header.sha256}
            made[split]["shards"].append({"file": header.file.name, "count": layout.count, **sums})
    codec = {"class": "x", "weights": None, "channels": shape[0], "factor": 8, "scale": scale, "shift": shift}
    manifest = {"version": 1, "codec": codec, "splits": made}
    (root / MANIFEST).write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))
    return root
