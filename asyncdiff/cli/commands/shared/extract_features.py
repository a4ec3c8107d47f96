"""Feature extraction shared by all processes, and cached reference statistics of real images."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.cli.commands.shared.distributed import Ranks
from asyncdiff.cli.commands.shared.image_sources import ImageSource
from asyncdiff.evaluation.feature_metrics import Moments
from asyncdiff.evaluation.features.base import Features, to_uint8
from asyncdiff.evaluation.reference_statistics import (
    MAX_ROWS,
    Reference,
    cache_path,
    check_fingerprint,
    load_reference,
    save_reference,
)


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of a source's images; complete on the first process only.

    Attributes:
        rows: features of the selected images, in order.
        moments: moments of the features of all images.
        shown: the first images, 8-bit.
    """

    rows: Float[Tensor, "n d"]
    moments: Moments
    shown: Tensor


@torch.no_grad()
def extract(
    features: Features, source: ImageSource, ranks: Ranks, *, max_rows: int | None = None, shown: int = 0
) -> ExtractedFeatures:
    """Extract float32 features of all images, each rounded to 8 bits as if it had been saved to a file.

    Args:
        features: prepared feature extractor, on the device of `ranks`.
        source: the images.
        ranks: the processes that share the work; all of them must call this function.
        max_rows: maximum number of feature rows to keep, evenly spaced over the images; None for all.
        shown: number of first images to keep.

    Returns:
        The features, complete on the first process only.
    """
    features.eval()
    moments = Moments(features.dim)
    selected = None
    if max_rows is not None and max_rows < source.count:
        selected = {i * source.count // max_rows for i in range(max_rows)}
    positions: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    rows: list[Tensor] = [torch.zeros(0, features.dim)]
    first_images: list[tuple[int, Tensor]] = []
    total, parts = source.batches(ranks)
    for index, images in tqdm(
        parts, desc=source.label, total=total, unit="batch", leave=False, disable=_hide_bar(ranks)
    ):
        levels = to_uint8(images)
        with torch.autocast(ranks.device.type, enabled=False):
            batch_rows = features(levels.float() / 127.5 - 1).float()
        moments.add(batch_rows)
        kept = [n for n, i in enumerate(index.tolist()) if selected is None or i in selected]
        positions.append(index[kept])
        rows.append(batch_rows[kept].cpu())
        first_images += [(i, levels[n].cpu()) for n, i in enumerate(index.tolist()) if i < shown]
    all_moments = Moments(features.dim)
    for state in ranks.gather(moments.state()):
        all_moments.merge(state)
    pairs = sorted((pair for part in ranks.gather(first_images) for pair in part), key=lambda pair: pair[0])
    stack = torch.stack([image for _, image in pairs]) if pairs else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return ExtractedFeatures(ranks.gather_in_order(torch.cat(positions), torch.cat(rows)), all_moments, stack)


def reference_for(
    features: Features, source: ImageSource, ranks: Ranks, *, file: Path | None = None
) -> tuple[Reference | None, str]:
    """Return the statistics of real images and their file, from `file`, else from the cache, else computed and cached.

    Args:
        features: prepared feature extractor.
        source: the real images.
        ranks: the processes that share the work; all of them must call this function.
        file: file of statistics; raise ValueError unless it is of these features and images.

    Returns:
        The statistics, None on all processes but the first if they had to be computed, and the path of their file.
    """
    fingerprint = reference_fingerprint(features, source)
    if file is not None:
        loaded = load_reference(file)
        check_fingerprint(loaded, fingerprint, file)
        return loaded, str(file)
    cached_file = cache_path(fingerprint)
    cached = _load_cached(cached_file, fingerprint) if ranks.first else None
    if ranks.broadcast(cached is not None):
        return cached, str(cached_file)
    extracted = extract(features, source, ranks, max_rows=MAX_ROWS)
    if not ranks.first:
        return None, ""
    reference = Reference(extracted.moments.gaussian(), extracted.moments.count, extracted.rows, fingerprint)
    try:
        save_reference(reference, cached_file)
    except OSError as error:
        warnings.warn(f"cannot write the statistics to {cached_file}: {error}; set ASYNCDIFF_CACHE", stacklevel=2)
    return reference, str(cached_file)


def reference_fingerprint(features: Features, source: ImageSource) -> dict[str, Any]:
    """Return the fingerprint of all that statistics of real images depend on."""
    return {"features": features.fingerprint(), "images": source.fingerprint()}


def _load_cached(file: Path, fingerprint: dict[str, Any]) -> Reference | None:
    """Return the cached statistics, or None if there are none or they cannot be read."""
    try:
        reference = load_reference(file)
        check_fingerprint(reference, fingerprint, file)
    except (FileNotFoundError, ValueError):
        return None
    return reference


def _hide_bar(ranks: Ranks) -> bool | None:
    """Return tqdm's `disable`: only the first process shows a bar, and only on a terminal."""
    return None if ranks.first else True
