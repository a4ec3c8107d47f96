"""What the class labels of a model mean: a digest of the names of the classes, which checkpoints and exports record."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdiff.foreign_text import visible

SHOWN, LENGTH = 3, 24  # number of names that a fingerprint shows, and of characters of each


def label_fingerprint(names: Any) -> dict[str, Any] | None:
    """Return a dict that identifies the meaning of labels; None unless `names` is a list of names.

    Keys: classes (their number), sha256 (of all names in the order of the labels) and first (some names for messages).
    """
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        return None
    # File systems spell letters with accents differently; names of files may be invalid Unicode.
    encoded = (unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass") for name in names)
    digest = hashlib.sha256(b"".join(name + b"\0" for name in encoded))
    first = [visible(name, LENGTH) for name in names[:SHOWN]]
    return {"classes": len(names), "sha256": digest.hexdigest(), "first": first}


def same_labels(here: Mapping[str, Any] | None, there: Mapping[str, Any] | None) -> bool:
    """Return whether two fingerprints are equal; True if one is unknown, as in files of earlier versions."""
    known = isinstance(here, Mapping) and isinstance(there, Mapping)
    return not known or here.get("sha256") == there.get("sha256")  # type: ignore[union-attr]


def check_same_labels(
    here: Mapping[str, Any] | None, there: Mapping[str, Any] | None, file: str | Path, remedy: str
) -> None:
    """Raise ValueError if the data's labels (`here`) mean other classes than those of a model (`there`) from `file`."""
    if not same_labels(here, there):
        raise ValueError(
            f"the classes of the data must be those of {file}, {describe(there)}, got {describe(here)}: {remedy}"
        )


def describe(fingerprint: Any) -> str:
    """Format a fingerprint for a message: the first names, their number and the first digits of the digest."""
    names = fingerprint.get("first")
    names = names[:SHOWN] if isinstance(names, list) else []
    listed = ", ".join(visible(name, LENGTH) for name in names)
    count, digest = visible(fingerprint.get("classes"), LENGTH), visible(fingerprint.get("sha256"))[:8]
    more = " ..." if fingerprint.get("classes") != len(names) else ""
    return f"{listed}{more} ({count} classes, SHA-256 {digest})"
