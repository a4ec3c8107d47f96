"""Files of a zip or folder with the class numbers of its dataset.json, and their parts to train and validate on."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.base import Split
from datamodules.hash_split import hash_fractions, is_held_out
from datamodules.index_cache import Arrays
from datamodules.storage.members import Members, open_members

Integers = npt.NDArray[np.int64]
LISTING = "dataset.json"


class LabeledFiles(NamedTuple):
    """Files, which of them, and the class numbers of these, int64 (n,); `classes` is 0 without labels."""

    files: Members
    rows: Integers
    labels: Integers
    classes: int

    def part(self, chosen: npt.NDArray[np.bool_]) -> "Labelled":
        """Some of these."""
        return self._replace(rows=self.rows[chosen], labels=self.labels[chosen])


def labeled_splits(
    root: Path, val_root: Path | None, held_out: float, suffixes: Collection[str]
) -> Mapping[Split, LabeledFiles]:
    """The files of the three splits; raises where they are missing, damaged, or labelled in part."""
    data = labeled(root, suffixes, "root")
    if val_root is not None:
        val = _of_the_same_classes(labeled(val_root, suffixes, "val_root"), data)
        return {"train": data, "val": val, "test": val}
    kept = is_held_out(data.files.cached("zip-shares", lambda: _shares(data.files))["shares"], held_out)
    if kept.all():
        raise ValueError(
            f"root must leave an image to train on, got {root} with {len(kept)}, all held out by "
            f"held_out={held_out}: add images, lower held_out or set val_root"
        )
    val = data.part(kept)
    return {"train": data.part(~kept), "val": val, "test": val}


def labeled(root: Path, suffixes: Collection[str], argument: str) -> LabeledFiles:
    """All files of a zip or folder; `argument` is who named it."""
    files = open_members(root, suffixes, argument)
    if not len(files):
        raise ValueError(f"{argument} must hold images, got {root} without any ({' '.join(sorted(suffixes))})")
    numbers = files.cached("zip-labels", lambda: {"labels": _numbers(files)})["labels"]
    labels = np.array(numbers if len(numbers) else np.zeros(len(files)), dtype=np.int64)
    return LabeledFiles(files, np.arange(len(files)), labels, int(labels.max()) + 1 if len(numbers) else 0)


def _of_the_same_classes(val: LabeledFiles, train: LabeledFiles) -> LabeledFiles:
    """Files to validate on, without labels where training has none."""
    if not train.classes:
        return val._replace(labels=np.zeros_like(val.labels), classes=0)
    if not val.classes or val.classes > train.classes:
        got = f"class {val.classes - 1}" if val.classes else "no labels"
        raise ValueError(
            f"{LISTING} of val_root must have training's {train.classes} classes, got {got} in {val.files.root}: "
            "write it with the same labels"
        )
    return val._replace(classes=train.classes)


def _shares(files: Members) -> Arrays:
    return {"shares": hash_fractions(files.name(index) for index in range(len(files)))}


def _numbers(files: Members) -> Integers:
    """Class number of every file, or none at all where there are no labels."""
    given = _listed(files)
    if not given:
        return np.zeros(0, np.int64)
    numbers = np.empty(len(files), np.int64)
    for index in range(len(files)):
        name = files.name(index)
        if name not in given:
            raise ValueError(
                f"{LISTING} must label every image or none, got no label of {name} in {files.root}: add it, or set "
                '"labels" to null'
            )
        numbers[index] = _number(given[name], name, files.root)
    return numbers


def _number(label: Any, name: str, root: Path) -> int:
    """A class number; EDM's tools also take vectors, which stand for something else than a class."""
    if type(label) is not int or label < 0:
        kind = "a vector" if isinstance(label, list) else repr(label)
        raise ValueError(
            f"{LISTING} must give whole numbers from 0 as classes, got {kind} for {name} in {root}: write the number "
            "of the class"
        )
    return label


def _listed(files: Members) -> dict[str, Any]:
    """Labels by name; empty where there are none."""
    if (text := files.text(LISTING)) is None:
        return {}
    try:
        listing = json.loads(text)
        return {name.replace("\\", "/"): label for name, label in listing.get("labels") or ()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{LISTING} must be {{"labels": [["name.png", 6], ...] or null}}, got {error} in {files.root}: write it so'
        ) from error
