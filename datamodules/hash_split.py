"""Which samples are kept from training, where the data itself has no validation part."""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Fractions = npt.NDArray[np.float64]


def check_held_out(held_out: float) -> None:
    """Refuse a share outside of (0, 1)."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie in (0, 1), got {held_out}: 0.01 keeps one image of a hundred")


def hash_fraction(name: str) -> float:
    """A number in [0, 1) from the relative path alone, uniform over paths, the same on every machine."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")  # file systems differ in their accents
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def hash_fractions(names: Iterable[str]) -> Fractions:
    """A number in [0, 1) for each name: a function of the name alone, uniform over names."""
    return np.fromiter(map(hash_fraction, names), dtype=np.float64)


def is_held_out(shares: Fractions, fraction: float) -> npt.NDArray[np.bool_]:
    """True for what is held out: the shares up to `fraction`, and at least one. A new name moves no other."""
    return shares <= max(fraction, float(shares.min()))
