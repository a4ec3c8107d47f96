"""Encode images, and write shards of their latents."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.checks import at_least
from asyncdiff.latents import Codec
from asyncdiff.latents.cache.shards import Settings, Shard
from asyncdiff.latents.cache.write_shard import write_shard
from asyncdiff.shapes import Image
from datamodules.storage.latent_shards import Layout, canonical_json

Rows = dict[str, npt.NDArray[Any]]
Views = Float[Tensor, "b views c h w"]


def check_fits(data: Any, codec: Codec) -> None:
    """Raise ValueError unless the codec can encode the data's images."""
    if data.channels != codec.pixel_channels:
        raise ValueError(
            f"--data must have {codec.pixel_channels} channels, as the codec does, got {data.channels}: set channels "
            "of the data module, or use another codec"
        )
    if data.size % codec.factor:
        raise ValueError(
            f"size of the data module must be a multiple of the codec's {codec.factor} pixels, got {data.size}: set "
            f"it to {max(1, round(data.size / codec.factor)) * codec.factor}"
        )


def encode(
    shards: Sequence[Shard], data: Any, codec: Codec, settings: Settings, *, batch_size: int, shown: bool
) -> None:
    """Encode and write the shards in order; if `shown`, with a progress bar in images per second."""
    at_least("--batch_size", batch_size, 1, "use 64, for example")
    total = sum(len(shard.rows) for shard in shards)
    with tqdm(total=total, unit="img", disable=None if shown and shards else True) as bar:
        for split, group in groupby(shards, lambda shard: shard.split):
            split_shards = list(group)
            # One loader for the entire split, so that its workers keep reading while a shard is written.
            batches = data.images_at(
                split, [rows for shard in split_shards for rows in split_into_batches(shard, batch_size)]
            )
            written: Future[None] | None = None
            # A shard is written while the next one is encoded; the thread starts after the loader has forked.
            with ThreadPoolExecutor(1) as writer:
                for number, shard in enumerate(split_shards, 1):
                    bar.set_description(f"{split} {number}/{len(split_shards)}")
                    parts = []
                    for rows in split_into_batches(shard, batch_size):
                        parts.append(encode_batch(next(batches), codec, settings, data.dataset(split)))
                        bar.update(len(rows))
                    if written is not None:
                        written.result()  # raises its error, and limits the memory to two shards
                    written = writer.submit(write, shard, parts)
                if written is not None:
                    written.result()


def split_into_batches(shard: Shard, batch_size: int) -> list[list[int]]:
    """Split the indices of a shard into batches; no batch spans two shards."""
    rows = shard.rows
    return [list(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]


def encode_batch(batch: Any, codec: Codec, settings: Settings, source: Any) -> Rows:
    """Encode a batch, from which unreadable images were removed, into the arrays that a shard stores."""
    images: Image = batch["image"]
    with torch.no_grad():
        encoded = [codec.moments(view) for view in ([images, images.flip(-1)] if settings.flip else [images])]
    rows: Rows = {"label": batch["label"].numpy(), "index": batch["index"].numpy()}
    moments = {"mean": [m.mean for m in encoded], "logvar": [m.logvar for m in encoded if m.logvar is not None]}
    for name, views in moments.items():
        if views:
            exact = torch.stack(views, 1).float().cpu()
            stored = exact.to(getattr(torch, settings.dtype))
            if not stored.isfinite().all():
                raise_unstorable(name, exact, stored, batch["index"].tolist(), source)
            rows[name] = stored.numpy()
    return rows


def raise_unstorable(name: str, exact: Views, stored: Views, index: Sequence[int], source: Any) -> None:
    """Raise ValueError, naming the first image whose latents cannot be stored."""
    place = int((~stored.isfinite()).flatten(1).any(1).nonzero()[0])
    image = source.name(index[place]) if hasattr(source, "name") else f"image {index[place]}"
    if not exact[place].isfinite().all():
        raise ValueError(
            f"{name} of latents must be finite, got NaN or infinity for {image}: remove the image, or set the codec's "
            "dtype to float32"
        )
    largest = exact[place].abs().max().item()
    raise ValueError(f"{name} of latents must fit into float16, got {largest:g} for {image}: use --dtype float32")


def write(shard: Shard, parts: Sequence[Rows]) -> None:
    """Write the concatenated batches as a shard, with channel sums in its metadata."""
    mean = parts[0]["mean"]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    count, views, channels, height, width = joined["mean"].shape
    layout = Layout(count, views, (channels, height, width), mean.dtype.name, 2 if "logvar" in joined else 1)
    about = {"sums": canonical_json(channel_sums(parts)), "unreadable": str(len(shard.rows) - count)}
    write_shard(shard.file, layout, joined, shard.metadata | about)


def channel_sums(parts: Sequence[Rows]) -> dict[str, Any]:
    """Return count, sum and sum of squares of each channel's raw latents, including the variance of the posterior."""
    numbers = sum(part["mean"].size // part["mean"].shape[2] for part in parts)
    first, second = (np.sum(list(column), axis=0).tolist() for column in zip(*map(_sum_moments, parts), strict=True))
    return {"count": numbers, "first": first, "second": second}


def _sum_moments(part: Rows) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    mean = part["mean"].astype(np.float64)
    square = mean**2 + (np.exp(part["logvar"].astype(np.float64)) if "logvar" in part else 0)
    return mean.sum((0, 1, 3, 4)), square.sum((0, 1, 3, 4))


def channel_statistics(
    sums: Sequence[dict[str, Any]], scale: Sequence[float], shift: Sequence[float]
) -> dict[str, Any]:
    """Return mean and standard deviation of each channel in model space, from the `channel_sums` of all shards."""
    count = max(1, sum(shard["count"] for shard in sums))
    first, second = (np.sum([shard[name] for shard in sums], axis=0) / count for name in ("first", "second"))
    deviation = np.sqrt(np.maximum(second - first**2, 0)) * np.abs(scale)
    return {"mean": ((first - np.asarray(shift)) * np.asarray(scale)).tolist(), "std": deviation.tolist()}
