"""Images to features, the work shared by processes; statistics of real images, kept in the cache."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from asyncdiff.cli.commands.distributed import Ranks
from asyncdiff.cli.commands.image_sources import ImageSource
from asyncdiff.evaluation.features.base import Features, to_uint8
from asyncdiff.evaluation.kid_and_is import Moments
from asyncdiff.evaluation.reference_statistics import KEPT, Reference, check, load, place, save


@dataclass(frozen=True)
class Extracted:
    """What became of a source's images; whole on the first process only.

    Attributes:
        rows: features of the images that were kept, in their order.
        moments: of all images' features.
        shown: the first images as bytes.
    """

    rows: Float[Tensor, "n d"]
    moments: Moments
    shown: Tensor


@torch.no_grad()
def extract(
    features: Features, source: ImageSource, ranks: Ranks, *, kept: int | None = None, shown: int = 0
) -> Extracted:
    """The features of all images, each rounded to 8 bits as if it had been saved, in float32.

    Args:
        features: prepared, on the device of `ranks`.
        source: the images.
        ranks: the processes that share the work; all must call.
        kept: rows that are kept, evenly over the images; all by default.
        shown: images that are kept as bytes, the first ones.
    """
    features.eval()
    moments = Moments(features.dim)
    wanted = None if kept is None or kept >= source.count else {i * source.count // kept for i in range(kept)}
    places: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    rows: list[Tensor] = [torch.zeros(0, features.dim)]
    pictures: list[tuple[int, Tensor]] = []
    total, parts = source.batches(ranks)
    for index, images in tqdm(parts, desc=source.what, total=total, unit="batch", leave=False, disable=_quiet(ranks)):
        levels = to_uint8(images)
        with torch.autocast(ranks.device.type, enabled=False):
            found = features(levels.float() / 127.5 - 1).float()
        moments.add(found)
        chosen = [n for n, i in enumerate(index.tolist()) if wanted is None or i in wanted]
        places.append(index[chosen])
        rows.append(found[chosen].cpu())
        pictures += [(i, levels[n].cpu()) for n, i in enumerate(index.tolist()) if i < shown]
    whole = Moments(features.dim)
    for state in ranks.gathered(moments.state()):
        whole.merge(state)
    seen = sorted((pair for part in ranks.gathered(pictures) for pair in part), key=lambda pair: pair[0])
    stack = torch.stack([picture for _, picture in seen]) if seen else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    return Extracted(ranks.in_order(torch.cat(places), torch.cat(rows)), whole, stack)


def reference_for(
    features: Features, source: ImageSource, ranks: Ranks, *, file: Path | None = None
) -> tuple[Reference | None, str]:
    """The statistics of real images, and where they are from; on the first process, None on the others.

    From `file`, where one is given, checked against what is asked for; else from the cache; else computed, and kept
    there.
    """
    stamp = reference_stamp(features, source)
    if file is not None:
        given = load(file)
        check(given, stamp, file)
        return given, str(file)
    kept = place(stamp)
    found = _cached(kept, stamp) if ranks.first else None
    if ranks.agreed(found is not None):
        return found, str(kept)
    extracted = extract(features, source, ranks, kept=KEPT)
    if not ranks.first:
        return None, ""
    reference = Reference(extracted.moments.gaussian(), extracted.moments.count, extracted.rows, stamp)
    try:
        save(reference, kept)
    except OSError as error:
        warnings.warn(f"cannot keep the statistics {kept}: {error}; set ASYNCDIFF_CACHE", stacklevel=2)
    return reference, str(kept)


def reference_stamp(features: Features, source: ImageSource) -> dict[str, Any]:
    """What statistics of real images depend on."""
    return {"features": features.stamp(), "images": source.stamp()}


def _cached(file: Path, stamp: dict[str, Any]) -> Reference | None:
    """What the cache has; None if it is nothing, or nothing that can be read."""
    try:
        reference = load(file)
        check(reference, stamp, file)
    except (FileNotFoundError, ValueError):
        return None
    return reference


def _quiet(ranks: Ranks) -> bool | None:
    """Only the first process shows a bar, and only on a terminal."""
    return None if ranks.first else True
