"""Deterministic train/validation split by a hash of file names, for data without a validation part."""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Fractions = npt.NDArray[np.float64]


def check_held_out(held_out: float, remedy: str = "0.01 holds out one image in a hundred") -> None:
    """Raise ValueError unless `held_out` lies in (0, 1)."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie in (0, 1), got {held_out}: {remedy}")


def hash_fraction(name: str) -> float:
    """Hash a relative path to a number in [0, 1): uniform over paths, the same on every machine."""
    # File systems normalize accents differently.
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def hash_fractions(names: Iterable[str]) -> Fractions:
    """Hash each name to a number in [0, 1), float64 (n,); see `hash_fraction`."""
    return np.fromiter(map(hash_fraction, names), dtype=np.float64)


def is_held_out(fractions: Fractions, held_out: float) -> npt.NDArray[np.bool_]:
    """Return True (n,) for the held-out samples: fractions up to `held_out`, and at least the smallest one.

    A new file never moves another one to the other split, except when the single smallest one is replaced.
    """
    return fractions <= max(held_out, float(fractions.min()))


def split_by_hash(
    fractions: Fractions, held_out: float, root: object, remedy: str = "add images, lower held_out or set val_root"
) -> npt.NDArray[np.bool_]:
    """Return True (n,) for the held-out samples as `is_held_out` does; raise ValueError if these are all."""
    mask = is_held_out(fractions, held_out)
    if mask.all():
        raise ValueError(
            f"root must leave an image to train on, got {root} with {len(mask)}, all held out by "
            f"held_out={held_out}: {remedy}"
        )
    return mask
