"""Extract features with all processes, and cache reference statistics of real images."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.cli.jobs.distributed import Ranks
from asyncdiff.cli.jobs.image_sources import ImageSource
from asyncdiff.devices import HostCopy
from asyncdiff.evaluation.features.base import Features, LateRangeCheck, to_uint8
from asyncdiff.evaluation.frechet import Moments
from asyncdiff.evaluation.held_out_images import evenly_spaced
from asyncdiff.evaluation.reference_statistics import (
    MAX_ROWS,
    Reference,
    cache_path,
    check_fingerprint,
    check_image_shape,
    load_reference,
    save_reference,
)
from asyncdiff.precision import full_float32


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of the images from a source; complete only on the first process.

    Attributes:
        features: features of the selected images, in order.
        moments: moments of the features of all images.
        first_images: first images of the source, 8-bit.
    """

    features: Float[Tensor, "n d"]
    moments: Moments
    first_images: Tensor


def prepare(features: Features, data: Any, decode: Callable[[Tensor], Tensor], options: Any) -> Features:
    """Prepare a feature extractor on its device with the training images, decoded if they are latents."""
    batches = data.images("train", options.batch_size)
    features.prepare({**batch, "image": decode(batch["image"])} for batch in batches)
    return features


@torch.no_grad()
def extract(
    features: Features, source: ImageSource, ranks: Ranks, *, max_features: int | None = None, keep_images: int = 0
) -> ExtractedFeatures:
    """Extract float32 features of all images, each rounded to 8 bits as if it had been saved to a file.

    A GPU works on a batch while the features of the one before are copied.

    Args:
        features: prepared feature extractor, on the device of `ranks`.
        source: images to extract features from.
        ranks: processes that share the work; all of them must call this function.
        max_features: maximum number of images whose features are returned, evenly spaced; None for all.
        keep_images: number of images to return, from the first one on.

    Returns:
        The features, complete on the first process only.
    """
    features.eval()
    moments = Moments(features.dim)
    selected = None
    if max_features is not None and max_features < source.count:
        selected = set(evenly_spaced(source.count, max_features))
    check_range = LateRangeCheck()
    positions: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    parts: list[Tensor] = [torch.zeros(0, features.dim)]
    first_images: list[tuple[int, Tensor]] = []

    def keep(index: list[int], rows: HostCopy, levels: HostCopy | None) -> None:
        chosen = [n for n, i in enumerate(index) if selected is None or i in selected]
        positions.append(torch.tensor(index)[chosen])
        parts.append(rows.read()[chosen])
        if levels is not None:
            first_images.extend((i, levels.read()[n]) for n, i in enumerate(index) if i < keep_images)

    last: tuple[list[int], HostCopy, HostCopy | None] | None = None
    total, batches = source.batches(ranks)
    hidden = None if ranks.first else True  # None shows the bar on a terminal only
    for index, images in tqdm(batches, source.label, total, unit="batch", leave=False, disable=hidden):
        check_range("images", images)
        levels = to_uint8(images)
        with full_float32(ranks.device):
            batch_features = features(levels.float() / 127.5 - 1).float()
        moments.add(batch_features)
        wanted = HostCopy(levels) if any(i < keep_images for i in index.tolist()) else None
        if last is not None:
            keep(*last)
        last = index.tolist(), HostCopy(batch_features), wanted
    if last is not None:
        keep(*last)
    check_range.finish()
    pairs = sorted((pair for part in ranks.gather(first_images) for pair in part), key=lambda pair: pair[0])
    stack = torch.stack([image for _, image in pairs]) if pairs else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    all_features = ranks.gather_in_order(torch.cat(positions), torch.cat(parts))
    return ExtractedFeatures(all_features, moments.over_processes(), stack)


def reference_for(
    features: Features, source: ImageSource, ranks: Ranks, *, file: Path | None = None
) -> tuple[Reference | None, str]:
    """Load the statistics of real images from `file` or the cache, or compute and cache them.

    Args:
        features: prepared feature extractor.
        source: real images.
        ranks: processes that share the work; all of them must call this function.
        file: statistics file to use instead of the cache; ValueError if it belongs to other features or images.

    Returns:
        The statistics and the path of their file; if they had to be computed, only the first process gets them, and
        all others get None and an empty path.
    """
    fingerprint = {"features": features.fingerprint(), "images": source.fingerprint()}
    if file is not None:
        loaded = load_reference(file)
        check_fingerprint(loaded, fingerprint, file)
        check_image_shape(loaded, source.shape, file)
        return loaded, str(file)
    cached_file = cache_path(fingerprint)
    cached = _load_cached(cached_file, fingerprint, ranks.device) if ranks.first else None
    if ranks.broadcast(cached is not None):
        return cached, str(cached_file)
    extracted = extract(features, source, ranks, max_features=MAX_ROWS)
    if not ranks.first:
        return None, ""
    moments = extracted.moments
    reference = Reference(moments.gaussian(), moments.count, extracted.features, fingerprint, "float32")
    try:
        save_reference(reference, cached_file)
    except OSError as error:
        warnings.warn(
            f"cannot write the statistics to {cached_file}: {error}; set ASYNCDIFF_CACHE to a writable folder",
            stacklevel=2,
        )
    return reference, str(cached_file)


def _load_cached(file: Path, fingerprint: dict[str, Any], device: torch.device) -> Reference | None:
    """Return the cached statistics, or None if they are missing, unreadable, out of date, or perhaps in TF32."""
    try:
        reference = load_reference(file)
        check_fingerprint(reference, fingerprint, file)
    except (FileNotFoundError, ValueError):
        return None
    return None if device.type == "cuda" and reference.precision is None else reference
