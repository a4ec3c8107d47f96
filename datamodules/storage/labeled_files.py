"""Files of a zip or folder with the class labels of its dataset.json, and their training and validation splits."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.base import Split
from datamodules.hash_split import hash_fractions, split_by_hash
from datamodules.hidden_names import RULE
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.storage.members import Members, find_text, open_members

LISTING = "dataset.json"


class LabeledFiles(NamedTuple):
    """Selected files of a zip or folder, with labels.

    Attributes:
        files: all files.
        rows: indices of the selected files, int64 (n,).
        labels: class labels of the selected files, int64 (n,).
        shares: `hash_fraction` of the names of the selected files, (n,).
        classes: number of classes, 0 without labels.
    """

    files: Members
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float64]
    classes: int

    def select(self, mask: npt.NDArray[np.bool_]) -> "LabeledFiles":
        """Return the files for which `mask` is true."""
        return self._replace(rows=self.rows[mask], labels=self.labels[mask], shares=self.shares[mask])


def labeled_splits(
    root: Path, val_root: Path | None, held_out: float, suffixes: Collection[str]
) -> Mapping[Split, LabeledFiles]:
    """Return the files of the three splits; raise if they are missing, damaged, or only some have labels."""
    data = _read_labeled_files(root, suffixes, "root")
    if val_root is not None:
        val = _with_classes_of(data, _read_labeled_files(val_root, suffixes, "val_root"))
        return {"train": data, "val": val, "test": val}
    val_mask = split_by_hash(data.shares, held_out, root)
    val = data.select(val_mask)
    return {"train": data.select(~val_mask), "val": val, "test": val}


def _read_labeled_files(root: Path, suffixes: Collection[str], argument: str) -> LabeledFiles:
    """Return all files of a zip or folder; `argument` is the argument to name in errors."""
    files = open_members(root, suffixes, argument)
    if not len(files):
        raise ValueError(
            f"{argument} must hold images, got {root} without any ({' '.join(sorted(suffixes))}): check the path"
        )
    if root.is_file():
        fingerprint = {"file": file_fingerprint(root), "suffixes": sorted(suffixes), "hidden": RULE, "form": 1}
        arrays = cached_arrays("zip-labels", fingerprint, lambda: _labels_and_shares(files))
    else:
        arrays = _labels_and_shares(files)
    labels = arrays["labels"] if len(arrays["labels"]) else np.zeros(len(files), np.int64)
    classes = int(labels.max()) + 1 if len(arrays["labels"]) else 0
    return LabeledFiles(files, np.arange(len(files)), labels, arrays["shares"], classes)


def _with_classes_of(train: LabeledFiles, val: LabeledFiles) -> LabeledFiles:
    """Return validation files with the classes of training, without labels if training has none."""
    if not train.classes:
        return val._replace(labels=np.zeros_like(val.labels), classes=0)
    if not val.classes or val.classes > train.classes:
        got = f"class {val.classes - 1}" if val.classes else "no labels"
        raise ValueError(
            f"{LISTING} of val_root must have the {train.classes} classes of training, got {got} in {val.files.root}: "
            "write it with the same labels"
        )
    return val._replace(classes=train.classes)


def _labels_and_shares(files: Members) -> Arrays:
    """Return the label of every file, none at all without labels, and the hash fraction of its name."""
    names, labels = [files.name(index) for index in range(len(files))], _read_listing(files.root)
    numbers = [_label(labels, name, files.root) for name in names] if labels else []
    return {"labels": np.array(numbers, dtype=np.int64), "shares": hash_fractions(names)}


def _label(labels: Mapping[str, Any], name: str, root: Path) -> int:
    """Return the label of a file if it is a class index; EDM's tools also accept vectors, which are not classes."""
    if name not in labels:
        raise ValueError(
            f"{LISTING} must label every image or none, got no label for {name} in {root}: add it, or set "
            '"labels" to null'
        )
    label = labels[name]
    if type(label) is not int or not 0 <= label < 2**31:
        kind = "a vector" if isinstance(label, list) else repr(label)
        raise ValueError(
            f"{LISTING} must hold non-negative integers as labels, got {kind} for {name} in {root}: write the index "
            "of the class"
        )
    return label


def _read_listing(root: Path) -> dict[str, Any]:
    """Return the labels by file name; empty without labels. Names in a listing are relative to its folder."""
    if (found := find_text(root, LISTING)) is None:
        return {}
    folder, text = found
    try:
        return {folder + name.replace("\\", "/"): label for name, label in json.loads(text).get("labels") or ()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{LISTING} must be {{"labels": [["name.png", 6], ...] or null}}, got {error} in {root}: correct it'
        ) from error
